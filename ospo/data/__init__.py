"""Raw ESCI and H&M files → prepared tables, and the built-in sample shops that come in the same raw
formats.
"""
