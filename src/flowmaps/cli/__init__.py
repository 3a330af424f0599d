"""The command line: `flowmaps train | sample | evaluate | average | compare`."""
