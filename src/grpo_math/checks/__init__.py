"""The checks of a recipe before its model is loaded.

A recipe on its layout (`Subject`) enters, findings leave: errors, warnings and notes, each with the line to change.
One file per subject; `preflight.CHECKS` is the table. May import every room to its left (grading to trainer), and
neither report nor launch.
"""
