"""A run by a service's Batch API: half the price, within a day.

run      rows into parts, parts into batches, answers into the same results
parts    the parts of a file, and the journal of which is where
api      the endpoints of files and batches;  http: how they are reached
answers  what a batch's files say;  state: what the service says of a batch
summary  what the run did
"""
