"""The learner: batch, loss, advantages, optimizer, checkpoints, export."""
