"""Other libraries' interfaces, over penstock's limiters: to move a program over one import at a time.

One module for each; limiters decide.
"""
