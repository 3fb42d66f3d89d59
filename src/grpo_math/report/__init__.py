"""The pages people read about a run: the report, the terminal summaries, the model card.

In: a run folder (and for the card the recipe of the run). Out: report.html with its pictures, README.md, text on the
terminal; nothing here is read back. Imports recipe, runs and evaluation, and everything before them.
"""
