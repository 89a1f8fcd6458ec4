"""Profiling a device: what is read while it is measured, and how the result is shown.

measure    all costs of a bundle, pass after pass      measuring  how each operation is clocked
recording  real rounds for a timeline
measure    everything in turn, to the costs of a profile       measuring  how each is clocked
recording  real rounds for the timeline
telemetry  power, temperature and clocks while something runs
surface    speedup over tree size and accepted length, from a profile's costs
ceiling    the roofline beside the costs
report     a profile as one page of HTML       page      what the page is made of
timeline   real rounds as a trace for a viewer
"""
