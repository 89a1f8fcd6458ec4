"""Measuring: prompt sets in, cells of figures out. Runs on a device with a bundle alone.

data      prompt sets in MMSpec's fields
methods   which ways of drafting the bundles at hand offer
measure   plain decoding and every method in turn, on one engine
cells     runs to figures
report    figures to a Markdown table       plot   figures to a picture
traces    runs to JSON lines, for replaying them elsewhere
"""
