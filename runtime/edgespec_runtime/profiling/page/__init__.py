"""What the report's page is made of.

markup   tags that escape what they are given
style    the style sheet
charts   lines over axes                           heatmap  speedups over size and length
costs    sections about times                      gains    the section about speedups
machine  sections about the machine                readings the section about telemetry
"""
