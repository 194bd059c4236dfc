"""A file of requests in, a file of results out: what `penstock run` does.

    source      the rows of a file, and what is wrong with them
    mix         which of them goes next, so that no limit is left unused
    engine      the run itself: charge, send, try again
    output      results and errors on disk, and where an interrupted run goes on
    summary     what happened, and how near it came to the optimum
    progress    the same while it happens, for people

It needs the extra `cli`. What options mean, and which server is asked, is the command line's business (`penstock.cli`).
"""
