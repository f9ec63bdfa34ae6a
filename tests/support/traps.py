"""Cases that catch a shortcut: each is unlike a plain MLP in one way that changes the answer.

A sample axis that is not the first one, rows that are positions, samples that are reordered, sent
to experts or meet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.table import Net, case

# --- positions shared by one Linear ----------------------------------------------------------


@case()
def few_positions_wide_layers(draw):
    model = nn.Sequential(
        nn.Linear(18, 16), nn.Tanh(), nn.Linear(16, 14), nn.Flatten(), nn.Linear(28, 3)
    )
    return model, draw.normal(5, 2, 18), draw.integers(3, 5)


@case()
def many_positions_narrow_layers(draw):
    model = nn.Sequential(
        nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2), nn.Flatten(), nn.Linear(40, 3)
    )
    return model, draw.normal(5, 20, 3), draw.integers(3, 5)


@case()
def two_axes_of_positions(draw):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(30, 3))
    return model, draw.normal(5, 2, 3, 4), draw.integers(3, 5)


@case()
def sequence_first_as_long_as_the_batch(draw):
    """Axis 0 inside is the position and its length is N: the sample axis is axis 1."""
    model = Net(
        lambda net, x: net.out(torch.tanh(net.hidden(x.transpose(0, 1))).cumsum(0).mean(0)),
        hidden=nn.Linear(4, 6),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(5, 5, 4), draw.integers(3, 5)


@case()
def sequence_first(draw):
    model = Net(
        lambda net, x: net.out(torch.tanh(net.hidden(x.transpose(0, 1))).cumsum(0).mean(0)),
        hidden=nn.Linear(4, 6),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(5, 3, 4), draw.integers(3, 5)


@case()
def flattened_positions(draw):
    model = Net(
        lambda net, x: net.out(
            torch.tanh(net.hidden(x.flatten(0, 1))).unflatten(0, x.shape[:2]).mean(1)
        ),
        hidden=nn.Linear(4, 6),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(5, 3, 4), draw.integers(3, 5)


@case()
def two_inputs_concatenated(draw):
    """Both inputs go through one call, so rows are ordered by input first and sample second."""

    def rule(net, first, second):
        one, two = torch.tanh(net.hidden(torch.cat([first, second]))).chunk(2)
        return net.out(one * two)

    inputs = (draw.normal(5, 4), draw.normal(5, 4))
    return Net(rule, hidden=nn.Linear(4, 6), out=nn.Linear(6, 3)), inputs, draw.integers(3, 5)


@case()
def linear_on_a_table_as_long_as_the_batch(draw):
    """A Linear whose rows are no samples at all, though there are N of them."""
    model = Net(
        lambda net, x: net.out(torch.tanh(x + net.project(net.table)).mean(1)),
        table=nn.Parameter(torch.zeros(5, 3)),
        project=nn.Linear(3, 4),
        out=nn.Linear(4, 3),
    )
    return model, draw.normal(5, 5, 4), draw.integers(3, 5)


# --- samples that meet or move ---------------------------------------------------------------


@case()
def duplicate_samples(draw):
    inputs, targets = draw.normal(6, 5), draw.integers(3, 6)
    inputs[3], targets[3] = inputs[0], targets[0]
    inputs[5], targets[5] = inputs[1], targets[1]
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), inputs, targets


@case()
def samples_that_interact(draw):
    def rule(net, x):
        hidden = torch.tanh(net.hidden(x))
        return net.out(hidden - hidden.mean(0))

    return (
        Net(rule, hidden=nn.Linear(4, 6), out=nn.Linear(6, 3)),
        draw.normal(5, 4),
        draw.integers(3, 5),
    )


@case()
def samples_reordered_inside(draw):
    order = torch.tensor([0, 2, 1, 3, 5, 4])

    def rule(net, x):
        return net.out(torch.tanh(net.hidden(x[order]))[order])

    return (
        Net(rule, hidden=nn.Linear(4, 6), out=nn.Linear(6, 3)),
        draw.normal(6, 4),
        draw.integers(3, 6),
    )


@case()
def samples_sorted_by_value(draw):
    def rule(net, x):
        order = x[:, 0].argsort()
        return net.out(torch.tanh(net.norm(net.hidden(x[order])))[order.argsort()])

    model = Net(rule, hidden=nn.Linear(4, 6), norm=nn.LayerNorm(6), out=nn.Linear(6, 3))
    return model, draw.normal(6, 4), draw.integers(3, 6)


@case()
def samples_answered_by_their_neighbour(draw):
    """Row n of the logits comes from row n - 1 of the inputs alone."""
    model = Net(
        lambda net, x: net.out(torch.tanh(net.norm(net.hidden(x))).roll(1, 0)),
        hidden=nn.Linear(4, 6),
        norm=nn.LayerNorm(6),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(6, 4), draw.integers(3, 6)


@case()
def last_two_samples_interact(draw):
    def rule(net, x):
        hidden = torch.tanh(net.norm(net.hidden(x)))
        return net.out(torch.cat([hidden[:-1], hidden[-1:] - 0.1 * hidden[-2:-1]]))

    model = Net(rule, hidden=nn.Linear(4, 6), norm=nn.LayerNorm(6), out=nn.Linear(6, 3))
    return model, draw.normal(6, 4), draw.integers(3, 6)


@case()
def context_shared_by_the_batch(draw):
    model = Net(
        lambda net, x: net.out(torch.tanh(net.hidden(x) + net.context(x.mean(0, keepdim=True)))),
        hidden=nn.Linear(4, 6),
        context=nn.Linear(4, 6),
        out=nn.Linear(6, 3),
    )
    return model, draw.normal(5, 4), draw.integers(3, 5)


@case()
def contrastive_pairs(draw):
    """Each sample's classes are the other samples, with a temperature of no dimension."""

    def rule(net, images, texts):
        first, second = F.normalize(net.image(images)), F.normalize(net.text(texts))
        return first @ second.T * net.temperature.exp()

    model = Net(
        rule,
        image=nn.Linear(4, 6),
        text=nn.Linear(3, 6),
        temperature=nn.Parameter(torch.zeros(())),
    )
    return model, (draw.normal(5, 4), draw.normal(5, 3)), torch.arange(5)


@case()
def samples_routed_to_experts(draw):
    def rule(net, x):
        hidden = x.new_zeros(len(x), 5)
        to_left = x[:, 0] > x[:, 0].median()
        hidden = hidden.index_put((to_left,), net.left(x[to_left]))
        return net.out(torch.tanh(hidden.index_put((~to_left,), net.right(x[~to_left]))))

    model = Net(rule, left=nn.Linear(4, 5), right=nn.Linear(4, 5), out=nn.Linear(5, 3))
    return model, draw.normal(6, 4), draw.integers(3, 6)
