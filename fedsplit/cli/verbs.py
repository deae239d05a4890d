"""The table of verbs: what ``fedsplit --help`` lists and where each verb lives."""

from __future__ import annotations

from fedsplit.cli.lazy import Verb

RUN, LOOK, USE = "Train together", "Look and prepare", "Use the result"

VERBS = (
    Verb("demo", "fedsplit.cli.demo:demo", "Three devices and a server on this machine train a real model.", RUN),
    Verb("new", "fedsplit.cli.new:new", "Write a commented run file, after three questions or from flags.", RUN),
    Verb("serve", "fedsplit.cli.serve:serve", "Host a run; prints the line that a device must type.", RUN),
    Verb("join", "fedsplit.cli.join:join", "Take part in a run with data that stays here.", RUN),
    Verb("leave", "fedsplit.cli.leave:leave", "End this device's part in a run; the server hears it.", RUN),
    Verb(
        "simulate",
        "fedsplit.cli.simulate:simulate",
        "Server and clients of a run file as real processes on this machine.",
        RUN,
    ),
    Verb("compare", "fedsplit.cli.compare:compare", "Run files or methods side by side, over several seeds.", RUN),
    Verb(
        "rerun",
        "fedsplit.cli.rerun:rerun",
        "Repeat a simulated run and compare the result to the last bit.",
        RUN,
    ),
    Verb(
        "doctor", "fedsplit.cli.doctor:doctor", "Is this machine fit to take part, and can it reach the server?", LOOK
    ),
    Verb("profile", "fedsplit.cli.profile:app", "Measure this device once and keep the result.", LOOK),
    Verb("plan", "fedsplit.cli.plan:plan", "Who would hold and train what, what it costs, and why.", LOOK),
    Verb("report", "fedsplit.cli.report:report", "What the plan of a run predicted against what happened.", LOOK),
    Verb("fit", "fedsplit.cli.fit:fit", "Will a model fit, where, and how fast; before any download.", LOOK),
    Verb("methods", "fedsplit.cli.methods:app", "The federated methods, with their papers.", LOOK),
    Verb("data", "fedsplit.cli.data:app", "Show how the rows of a file are read.", LOOK),
    Verb("partition", "fedsplit.cli.partition:partition", "Cut one data set into files for several clients.", LOOK),
    Verb("schema", "fedsplit.cli.schema:schema", "The JSON schemas of run files, profiles and plans.", LOOK),
    Verb("verify", "fedsplit.cli.verify:verify", "Prove that the split model equals the unsplit one here.", LOOK),
    Verb("bench", "fedsplit.cli.bench:app", "Measure this machine: split step, wire and more.", LOOK),
    Verb("export", "fedsplit.cli.export:export", "Write a run's result as a plain peft adapter.", USE),
    Verb("predict", "fedsplit.cli.predict:predict", "Ask the fine-tuned model.", USE),
    Verb("forget", "fedsplit.cli.forget:forget", "Delete what this device keeps of a run.", USE),
)
