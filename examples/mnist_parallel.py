"""Input-conditioned MNIST: every image is classified by a 784-32-10 network of its own, generated from that image.

A batch of B images has B sets of 25,450 weights, and the library evaluates all B networks at once. `--path` says how:
every path computes the same function, at its own speed.
"""

from collections.abc import Sequence

import pictures
import torch
from data import CLASSES, PIXELS, load_digits
from torch import Tensor, nn
from training import Phi, fit, options, positive, predict, print_accuracy

import functional_hyper as fh

SHOWN = 500  # digits in the picture of the generated weights


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("mnist_parallel", __doc__, epochs=30, batch_size=64, lr=1e-3)
    parser.add_argument("--path", choices=("auto", *fh.PATHS), default="auto", help="how the networks are evaluated")
    parser.add_argument("--hidden", type=positive, nargs="*", default=[16], help="widths of the hypernetwork's trunk")
    args = parser.parse_args(argv)

    classifier = nn.Sequential(nn.Linear(PIXELS, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    spec = fh.param_spec(classifier)
    hyper = fh.full(spec, in_features=PIXELS, hidden=args.hidden)
    model = fh.compose(hyper, classifier, path=args.path)

    def logits(phi: Phi, images: Tensor) -> Tensor:  # (n, 784) -> (n, 10)
        return model(phi, images, images)

    digits = load_digits(args.data, args.data_dir, args.validation).to(args.device)
    generator = torch.Generator().manual_seed(args.seed)
    phi = hyper.init(generator, device=args.device)
    print(f"{sum(p.numel() for p in phi.values()):,} parameters generate {spec.size:,} weights for each image")

    history = fit(logits, phi, digits, generator, args)
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
