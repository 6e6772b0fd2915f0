"""The map: the way of one thumb, from the event to the weights that serve.

1. `intake.consumers` takes it off the bus, with the rollout it speaks of;
2. `ledger.events.recorder` records both and makes samples of them (`sample_rules`,
   `verdict_rules`);
3. `loop` asks `batching.batcher` for a batch: `ledger.queue` says which samples are ready,
   `batching.trust` (with `guards`) how much each counts;
4. `training_run` takes one step with it: `trainer` runs the model (`models`) and the loss of the
   objective (`objectives`, `losses`), and `ledger.accounting.steps` commits the step and its uses;
5. `release.publisher` saves the weights as a version and puts them in the weight store;
6. `release.gate` compares the version with the one that serves, `release.canary` tries it on a
   share of the users, and `release.promotion` names it in the routing table;
7. `monitoring` watches all of it, `service` answers questions about it, and `app` wires it up.

`prompts` asks questions of the learner's own through `clients`. `offline` and `commands` train,
evaluate and export without any of this; they share `data`, `trainer` and `models`.
"""
