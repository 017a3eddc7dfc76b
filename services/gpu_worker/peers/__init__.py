"""Workers among themselves: plans from a lead to its members, KV and weights from one to another.

`network` is what the rest of the worker uses. `ports` says what the worker supplies in return.
Pure: `kv_plan` (who sends which bytes), `plan_codec` (a step's plan as bytes) and `tickets` (which
copies may be stored now). The message contract is libs/contracts/peers.py.
"""
