"""The results of a run and of a comparison: plots, tables and the page report.html.

A figure is a plot, a `matplotlib.figure.Figure`; numbers are metrics. `figures` draws plots of points, losses and
metrics, and its `save` writes any figure as a PNG file; `image_grid` draws many images in one figure. `pictures`
chooses which figures a run gets, and names and saves them.
"""
