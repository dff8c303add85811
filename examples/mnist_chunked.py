"""Unconditional MNIST with chunks: one small head generates a 784-32-10 classifier piece by piece.

The head emits `--chunk-size` weights at a time, told which by a learned chunk embedding, so it needs no column for each
of the weights. What it emits is added to a learned base that starts at an ordinary draw: training starts where that of
an ordinary classifier would.
"""

from collections.abc import Sequence

import pictures
import torch
from data import CLASSES, PIXELS, load_digits
from torch import Tensor, nn
from training import Phi, fit, options, positive, predict, print_accuracy

import functional_hyper as fh


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("mnist_chunked", __doc__, epochs=40, batch_size=32, lr=3e-3)
    parser.add_argument("--embedding", type=positive, default=16, help="width of the task's learned embedding")
    parser.add_argument("--hidden", type=positive, nargs="*", default=[64], help="widths of the hypernetwork's trunk")
    parser.add_argument("--chunk-size", type=positive, default=512, help="weights that the head emits at a time")
    args = parser.parse_args(argv)

    classifier = nn.Sequential(nn.Linear(PIXELS, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    spec = fh.param_spec(classifier)
    chunked = fh.chunked(spec, in_features=args.embedding, hidden=args.hidden, chunk_size=args.chunk_size)
    hyper = fh.with_embedding(fh.with_base(chunked), num_tasks=1)
    model = fh.compose(hyper, classifier, many=True)
    task = torch.zeros(1, dtype=torch.int64, device=args.device)

    def logits(phi: Phi, images: Tensor) -> Tensor:  # (n, 784) -> (n, 10)
        return model(phi, task, images.unsqueeze(0)).squeeze(0)

    digits = load_digits(args.data, args.data_dir, args.validation).to(args.device)
    generator = torch.Generator().manual_seed(args.seed)
    phi = hyper.init(generator, device=args.device)
    based = sum(p.numel() for name, p in phi.items() if name.startswith("base."))
    print(f"{sum(p.numel() for p in phi.values()) - based:,} parameters and a base generate {spec.size:,} weights")

    history = fit(logits, phi, digits, generator, args, spec)
    print_accuracy(history, args)

    figure, (curve, predictions, units) = pictures.panels("One small head generates a classifier in chunks", 3)
    pictures.draw_history(curve, history, "validation" if args.validation else "test")
    guesses = predict(logits, phi, digits.test_images)
    pictures.draw_predictions(predictions, digits.test_images, digits.test_labels, guesses)
    pictures.draw_hidden_units(units, fh.unravel(spec, hyper.apply(phi, task))["0.weight"][0])
    pictures.save(figure, args.out / "mnist_chunked.png")


if __name__ == "__main__":
    main()
