"""The command line: `flowmaps train | distill | sample | evaluate | average | compare | export | encode | doctor`."""
