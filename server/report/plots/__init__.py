"""Plots of the report as inline SVG, one file per family; every figure in them also stands in a table beside them."""
