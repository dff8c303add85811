"""Unconditional MNIST: one learned embedding generates all weights of one 784-32-10 classifier.

The least that a hypernetwork can do. The cond never changes, so there is one set of weights (B = 1), and a whole batch
of N images goes through it: x is (1, N, 784). Only how the weights are learned differs from an ordinary classifier.
"""

from collections.abc import Sequence

import pictures
import torch
from data import CLASSES, PIXELS, load_digits
from torch import Tensor, nn
from training import Phi, fit, options, positive, predict, print_accuracy

import functional_hyper as fh


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("mnist_full", __doc__, epochs=30, batch_size=64, lr=1e-3)
    parser.set_defaults(weight_decay=1.0)
    parser.add_argument("--embedding", type=positive, default=16, help="width of the learned embedding")
    parser.add_argument("--hidden", type=positive, nargs="*", default=[32], help="widths of the hypernetwork's trunk")
    args = parser.parse_args(argv)

    classifier = nn.Sequential(nn.Linear(PIXELS, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    spec = fh.param_spec(classifier)
    hyper = fh.with_embedding(fh.full(spec, in_features=args.embedding, hidden=args.hidden), num_tasks=1)
    model = fh.compose(hyper, classifier, many=True)
    task = torch.zeros(1, dtype=torch.int64, device=args.device)

    def logits(phi: Phi, images: Tensor) -> Tensor:  # (n, 784) -> (n, 10)
        return model(phi, task, images.unsqueeze(0)).squeeze(0)

    digits = load_digits(args.data, args.data_dir, args.validation).to(args.device)
    generator = torch.Generator().manual_seed(args.seed)
    phi = hyper.init(generator, device=args.device)
    print(f"{sum(p.numel() for p in phi.values()):,} parameters generate {spec.size:,} weights")

    history = fit(logits, phi, digits, generator, args, spec)
    print_accuracy(history, args)

    figure, (curve, predictions, units) = pictures.panels("One embedding generates one classifier", 3)
    pictures.draw_history(curve, history, "validation" if args.validation else "test")
    guesses = predict(logits, phi, digits.test_images)
    pictures.draw_predictions(predictions, digits.test_images, digits.test_labels, guesses)
    pictures.draw_hidden_units(units, fh.unravel(spec, hyper.apply(phi, task))["0.weight"][0])
    pictures.save(figure, args.out / "mnist_full.png")


if __name__ == "__main__":
    main()
