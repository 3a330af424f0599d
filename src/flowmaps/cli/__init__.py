"""The command line, `flowmaps COMMAND`; main.py has the list of commands, with a line on each.

train, distill, encode    sample, export    invert, likelihood, restore    evaluate, average, compare, tune
methods, doctor
"""
