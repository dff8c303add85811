"""Input-conditioned MNIST: every image is classified by a 784-32-10 network of its own, generated from that image.

A batch of B images has B sets of 25,450 weights, and the library evaluates all B networks at once. `--path` says how:
every path computes the same function, at its own speed.
"""

from collections.abc import Callable, Sequence

import pictures
import torch
from data import CLASSES, PIXELS, load_digits
from torch import Tensor, nn
from training import Phi, fit, options, positive, predict, print_accuracy

import functional_hyper as fh
from functional_hyper.study import interleaved

SHOWN = 500  # digits in the picture of the generated weights


HYPERNETS = {"full": fh.full, "low_rank": fh.low_rank, "scaled": fh.scaled}


def compare(hyper: fh.Hypernet, classifier: nn.Module, paths: tuple[str, str], phi: Phi, images: Tensor) -> None:
    """Prints the median times of a training step by two paths, in one process and in turn."""

    def step(path: str) -> Callable[[], object]:
        model = fh.compose(hyper, classifier, path)
        return lambda: torch.autograd.grad(model(phi, images, images).logsumexp(1).sum(), list(phi.values()))

    times = {path: 1e3 * runs.median for path, runs in interleaved({path: step(path) for path in paths}, 2.0).items()}
    ours, theirs = (times[path] for path in paths)
    each = ", ".join(f"{path} {taken:.2f} ms" for path, taken in times.items())
    print(f"forward and backward of {len(images)} images: {each}: {theirs / ours:.1f}x")


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("mnist_parallel", __doc__, epochs=30, batch_size=64, lr=1e-3)
    parser.add_argument("--path", choices=("auto", *fh.PATHS), default="auto", help="how the networks are evaluated")
    parser.add_argument("--hypernet", choices=HYPERNETS, default="full", help="how an image's weights are generated")
    parser.add_argument("--compare-paths", action="store_true", help="time a training step against grouped_conv first")
    parser.add_argument("--hidden", type=positive, nargs="*", default=[16], help="widths of the hypernetwork's trunk")
    args = parser.parse_args(argv)

    classifier = nn.Sequential(nn.Linear(PIXELS, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    spec = fh.param_spec(classifier)
    hyper = HYPERNETS[args.hypernet](spec, in_features=PIXELS, hidden=args.hidden)
    model = fh.compose(hyper, classifier, path=args.path)

    def logits(phi: Phi, images: Tensor) -> Tensor:  # (n, 784) -> (n, 10)
        return model(phi, images, images)

    digits = load_digits(args.data, args.data_dir, args.validation).to(args.device)
    generator = torch.Generator().manual_seed(args.seed)
    phi = hyper.init(generator, device=args.device)
    print(f"{sum(p.numel() for p in phi.values()):,} parameters generate {spec.size:,} weights for each image")

    if args.compare_paths:
        compare(hyper, classifier, (args.path, "grouped_conv"), phi, digits.train_images[: args.batch_size])
    history = fit(logits, phi, digits, generator, args, spec)
    print_accuracy(history, args)

    figure, (curve, predictions, weights) = pictures.panels("Each digit generates its own classifier", 3)
    pictures.draw_history(curve, history, "validation" if args.validation else "test")
    guesses = predict(logits, phi, digits.test_images)
    pictures.draw_predictions(predictions, digits.test_images, digits.test_labels, guesses)
    with torch.no_grad():
        theta = hyper.apply(phi, digits.test_images[:SHOWN])
    pictures.draw_weight_space(weights, theta, digits.test_labels[:SHOWN])
    pictures.save(figure, args.out / "mnist_parallel.png")


if __name__ == "__main__":
    main()
