"""Rebuild the zoo: ``python -m odediff.zoo {network,classifier,export,evaluate}``. Training can be stopped and resumed.

The published weights come from ``network`` and ``classifier`` with their default recipes, then ``export``.
"""

import argparse
from pathlib import Path

import torch

from odediff import zoo
from odediff.schedule import VPTable
from odediff.zoo import dataset, train_classifier, train_network
from odediff.zoo.assets import WEIGHTS
from odediff.zoo.evaluate import evaluate
from odediff.zoo.export import export


def main() -> None:
    """Parse the command line; a ValueError becomes one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m odediff.zoo", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("network", "classifier"):
        command = commands.add_parser(name, help=f"train the {name}, or go on where the checkpoint stops")
        command.add_argument("--data", type=Path, required=True, help="folder of the Fashion-MNIST IDX files")
        command.add_argument("--checkpoint", type=Path, required=True)
        command.add_argument("--device", default="cpu")
    command = commands.add_parser("export", help="write the embedded assets from two checkpoints")
    command.add_argument("--data", type=Path, required=True, help="folder of the Fashion-MNIST IDX files")
    command.add_argument("--network", type=Path, required=True, help="its checkpoint")
    command.add_argument("--classifier", type=Path, required=True, help="its checkpoint")
    command.add_argument("--folder", type=Path, default=WEIGHTS)
    command = commands.add_parser("evaluate", help="score class-conditional samples of the embedded network")
    command.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 2.5, 3.0])
    command.add_argument("--samples", type=int, default=2048)
    command.add_argument("--steps", type=int, default=50)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


def run(arguments: argparse.Namespace) -> None:
    """Carry out one parsed command."""
    if arguments.command == "export":
        export(arguments.data, arguments.network, arguments.classifier, arguments.folder)
    elif arguments.command == "evaluate":
        model = zoo.fashion_mnist(arguments.device)
        print("guidance  accuracy  Fréchet  real against real")
        for guidance in arguments.guidance:
            scores = evaluate(model, guidance, arguments.samples, arguments.steps, arguments.seed, arguments.device)
            print(f"{guidance:8g}  {scores.accuracy:8.2%}  {scores.frechet:7.3f}  {scores.real:17.3f}", flush=True)
    else:
        images, labels = dataset.load(arguments.data, "train")
        images = dataset.to_network(images)
        if arguments.command == "network":
            table = torch.tensor(VPTable.linear().alphas_cumprod)
            train_network.train(images, labels, table, train_network.Recipe(), arguments.checkpoint, arguments.device)
        else:
            train_classifier.train(images, labels, train_classifier.Recipe(), arguments.checkpoint, arguments.device)


if __name__ == "__main__":
    main()
