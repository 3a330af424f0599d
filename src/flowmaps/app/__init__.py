"""A page in the browser to play with a run's map: `flowmaps app DIR`.

opened.py     the run: map, teacher, data, and what is asked of it
samples.py    the same noise in 1, 2, 4, 8 steps, beside the teacher
jumps.py      where points go under X_{s,t}, with the trajectories
squares.py    the residuals over (s, t)
carrying.py   data to noise and back, or to another class
panels.py     pictures of points of any dimension, images and digits
page.py       the page, by Gradio
server.py     its server, on this machine alone unless told otherwise
"""
