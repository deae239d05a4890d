"""Who holds and trains what: a household's devices planned for a billion-parameter Llama, without weights or torch.

The planner is a pure function of numbers: the model's config.json, what each device was measured to do, and the run
file. The same numbers give the same plan, and each client's plan says why it is this one.

    python examples/02_plan_a_fleet.py
"""

from __future__ import annotations

import fedsplit
from fedsplit.config.load import loads
from fedsplit.devices.change import what_if
from fedsplit.devices.fleet import load_fleet
from fedsplit.errors import PlanError
from fedsplit.plan.card import card
from fedsplit.plan.types import Plan

RUN = """
[model]
path = "Llama-3.2-1B"
max_length = 256
dtype = "bfloat16"

[train]
batch = 4
"""
# The fields of the model's config.json that decide what things cost.
LLAMA = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip


def show(plan: Plan) -> None:
    """A paragraph for each client."""
    for client in plan.clients:
        cost, (c1, c2) = client.estimate, (client.cut.c1, client.cut.c2)
        assert cost is not None
        elsewhere = "nothing" if c1 == c2 else f"layers {c1} to {c2 - 1}"
        print(f"{client.client}: topology {client.topology}, {elsewhere} on the server")
        print(
            f"    {cost.memory_bytes / 1e6:,.0f} MB, {cost.step_s:.1f} s a step, {cost.up_bytes / 1e6:.1f} MB up a step"
        )
        for reason in client.reasons:
            print(f"    {reason}")


run, model = loads(RUN), card(LLAMA, "causal-lm")
home = load_fleet("home")  # a file of your own works too; `fedsplit profile` measures a machine

print("1. The whole household. Nothing is planned by halves: who cannot take part is named, with what would help.\n")
try:
    show(fedsplit.make_plan(model, home.devices, run, server=home.server))
except PlanError as error:
    print(error)

print("\n2. Without it.\n")
devices = {name: device for name, device in home.devices.items() if name != "zero-hallway"}
plan = fedsplit.make_plan(model, devices, run, server=home.server)
show(plan)

print("\n3. What if the kitchen's Pi were on a slow uplink?\n")
slow = fedsplit.make_plan(model, what_if(devices, "pi-kitchen.uplink=0.5Mbit/s"), run, server=home.server)
before, after = ({one.client: one.estimate for one in each.clients}["pi-kitchen"] for each in (plan, slow))
assert before is not None
assert after is not None
print(f"pi-kitchen: {before.step_s:.1f} s a step becomes {after.step_s:.1f} s")
print(f"plan {plan.digest[:12]} becomes {slow.digest[:12]}")
