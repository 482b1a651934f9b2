"""KAR's side of `peer_speed.py`: DIN of its own code, with its own data set, loader, optimizer and training step.

Its code is on no package registry; the folder is the `RS` of its repository, whose modules are imported. What is read is what
`peer_speed.py` wrote in the form of its preprocessing.
"""

from __future__ import annotations

import argparse
import sys

import peer_worker
import torch

HISTORY = 10
LEARNING_RATE = 1e-3


def main() -> None:
    parser = peer_worker.arguments(__doc__)
    parser.add_argument("--code", required=True, help="the folder of its code")
    parser.add_argument("--adaptor", action="store_true", help="with the vectors of items and users, and its adaptor")
    given = parser.parse_args()

    answers = peer_worker.begin(given.threads)
    sys.path.insert(0, given.code)
    from dataset import AmzDataset
    from models import DeepInterestNet
    from optimization import AdamW, get_cosine_schedule_with_warmup
    from utils import weight_init

    examples = AmzDataset(str(given.work), "train", "ctr", HISTORY, given.adaptor, "mean")
    model = DeepInterestNet(settings(given), examples)
    model.apply(weight_init)
    # As its `main_ctr.py` has it.
    optimizer = AdamW(model.parameters(), lr=LEARNING_RATE, eps=1e-8)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=len(examples) * 20)

    def step(batch: dict[str, torch.Tensor]) -> float:
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.item()

    loader = torch.utils.data.DataLoader(
        examples, batch_size=given.batch_size, shuffle=True, num_workers=given.loading_workers
    )
    model.train()
    batches = peer_worker.endless(loader, "lb", given.batch_size, cached=given.cached)
    peer_worker.answer(answers, {"torch": torch.__version__}, step, batches)


def settings(given: argparse.Namespace) -> argparse.Namespace:
    """What its models are told: of its own defaults what is not in the comparison, its adaptor as it was published."""
    return argparse.Namespace(
        task="ctr",
        device="cpu",
        augment=given.adaptor,
        max_hist_len=HISTORY,
        embed_dim=given.width,
        final_mlp_arch=given.hidden_units,
        output_dim=1,
        hidden_size=64,
        dropout=0.0,
        rnn_dp=0.0,
        convert_type="HEA",
        convert_dropout=0.0,
        convert_arch=[128, 32],
        export_num=2,
        specific_export_num=5,
        auxi_loss_weight=0,
    )


if __name__ == "__main__":
    main()
