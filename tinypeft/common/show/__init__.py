"""What a notebook shows, made from numbers, names and text alone.

    markup.py  HTML: tables whose cells are escaped, and pictures
    tables.py  the tables of a model, a tensor, a quantized array and a run
    boxes.py   boxes that are joined by curves, as SVG
    curves.py  losses over steps or rates, with Matplotlib
"""
