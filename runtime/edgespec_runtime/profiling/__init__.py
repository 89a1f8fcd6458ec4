"""Profiling a device: what is read while it is measured, and how the result is shown.

measuring  every operation at the runtime's contracts
telemetry  power, temperature and clocks while something runs
surface    speedup over tree size and accepted length, from a profile's costs
ceiling    the roofline beside the costs
report     a profile as one page of HTML       page      what the page is made of
timeline   real rounds as a trace for a viewer
"""
