"""What tools/dev/benchmark.py measures, and how.

peers.py      other implementations of ConvNeXt, with the same weights and outputs
rows.py       what is compared: ours under its options, and each peer
subjects.py   a row that is built; its step is what is timed
reference.py  the official formulation that every row must equal
machine.py    what this machine is and can do
timing.py     time and memory of steps: the subcommands time, model, scaling, profile and optimizer
memory.py     peak memory and saved activations
report.py     tables and plots
loading.py    the subcommand loading
rule.py       the subcommand rule
"""
