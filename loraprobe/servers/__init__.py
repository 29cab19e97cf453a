"""Servers of adapters, such as vLLM: what they read of a file, how they are asked and started.

    serving     what servers can run of a file and of a run, and the commands that serve it
    scorer      ServedScorer, which has the interface of `scoring.Scorer`
    acceptance  whether a server computes what transformers compute here
    client      requests over HTTP

Other rooms see a `Scorer`, issues and commands.
"""
