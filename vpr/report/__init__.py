"""What people look at: panels, plots, heat maps, the HTML report.

heatmaps.py     Explanations as pictures: clusters and contributions drawn over the images
html.py         one HTML file of a test: recalls, pictures, settings, all queries
interactive.py  The map and the recall curve that one moves about in: figures of Bokeh for a page without a network
located.py      What --mode=locate draws: an image with its matches, and below what re-ranking found of the first
matches.py      a query and a hit side by side, and a line for each match
panels.py       Pictures of queries: each with its first hits beside it, right in green, wrong in red
plots.py        plots as PNG files: recalls, map, certainty, a training, a comparison
write.py        What a test shows: recall.png, map.png, panels/ and report.html in its own folder
"""
