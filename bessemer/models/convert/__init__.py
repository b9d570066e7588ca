"""Kind: a Hugging Face architecture: config.json <-> our options, their tensors <-> our parameters.

A method is a class in a file of its name, derived from `_architecture.Architecture`:

    options(config) -> dict      our decoder's options; refuses what it can't do
    config(options, vocabulary)  config.json's keys
    sources(options)             our parameter -> the tensors it is made of
    why_not(options)             None where a model is of this architecture, else the reason
"""
