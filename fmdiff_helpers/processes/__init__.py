"""Processes: one file for each way in which a network learns and draws. A card names one, and gives its arguments.

Every process has

    kind                                 of the networks that learn by it, as in their cards: "denoiser", for example
    from_card(card, device, ...)         build it, with its tables on a device; the rest are its arguments, with types
    draw(x0, generator)                  draw the random numbers of a training step, as tensors (B, ...)
    training_loss(num_steps)             return loss(model, x0, y, *drawn) -> (B,); an nn.Module if it has a memory
    validate(model, x0, y)               return {"loss": ...} and other measures on images held out
    max_steps                            the most steps that drawing takes; 0 where the network draws nothing

and, if it draws,

    device, shape                        of its random numbers; of what it draws where there is no autoencoder
    predictor(network)                   return what `sample` takes as its model
    sample(model, x, generator, num_steps, y=, clip=, watch=, progress=)
                                         walk from noise x ~ N(0, I) to samples, as `samplers` explains it;
                                         `--eta` needs a parameter of that name, and is refused without one

A model gets t on the scale from 0 to `max_steps`; it may be a real number. These methods are all that training, the
command and the leaderboard need to know. Two things are for chains with a schedule only: most explorers, and `path` and
`loop` of `fmdiff show`.
"""
