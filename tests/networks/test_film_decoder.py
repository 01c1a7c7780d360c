import pytest
import torch

from medtame.networks.film_decoder import Film, FilmDecoder, places


def made(seed: int = 0, **changes):
    torch.manual_seed(seed)
    return FilmDecoder(**({"features": (12, 5), "text": 6, "maps": 2, "width": 16} | changes)).eval()


def given(n: int, height: int = 48, width: int = 40):
    random = torch.Generator().manual_seed(1)
    scales = [torch.rand(n, 12, 4, 4, generator=random), torch.rand(n, 5, 8, 8, generator=random)]
    return scales, torch.rand(n, 3, height, width, generator=random), torch.randn(n, 6, generator=random)


def test_film_normalises_then_scales_and_shifts_each_channel():
    torch.manual_seed(0)
    film, maps, text = Film(6, 8), torch.randn(2, 8, 3, 5), torch.randn(2, 6)
    numbers = film.change(text)
    slow = torch.empty_like(maps)
    for row in range(2):
        for group in range(4):
            part = maps[row, 2 * group : 2 * group + 2]
            part = (part - part.mean()) / (part.var(unbiased=False) + 1e-5).sqrt()
            for inside in range(2):
                channel = 2 * group + inside
                slow[row, channel] = part[inside] * (1 + numbers[row, channel]) + numbers[row, 8 + channel]
    assert torch.allclose(film(maps, text), slow, atol=1e-5)


def test_places_are_the_centres_of_cells():
    x, y = places(2, (2, 4))[1]
    assert x.tolist() == [[-0.75, -0.25, 0.25, 0.75]] * 2
    assert y.tolist() == [[-0.5] * 4, [0.5] * 4]


@pytest.mark.parametrize("size", [(48, 40), (50, 37), (33, 64)])
def test_logits_have_the_size_of_the_pixels(size):
    assert made()(*given(2, *size)).shape == (2, 2, *size)


def test_a_row_does_not_depend_on_its_batch_or_its_place():
    network, (scales, pixels, text) = made(), given(5)
    whole = network(scales, pixels, text)
    alone = torch.cat([network([scale[[i]] for scale in scales], pixels[[i]], text[[i]]) for i in range(5)])
    turned = network([scale.flip(0) for scale in scales], pixels.flip(0), text.flip(0)).flip(0)
    assert torch.allclose(whole, alone, atol=1e-4)
    assert torch.allclose(whole, turned, atol=1e-4)


def test_every_input_reaches_the_logits():
    """Its text, each scale and its pixels: the largest change is far above rounding."""
    network, (scales, pixels, text) = made(), given(2)
    before = network(scales, pixels, text)
    others = (
        network(scales, pixels, text.flip(0)),
        network([scales[0].flip(0), scales[1]], pixels, text),
        network([scales[0], scales[1].flip(0)], pixels, text),
        network(scales, pixels.flip(0), text),
    )
    assert min(float((before - after).detach().abs().max()) for after in others) > 1e-2


def test_without_gain_shift_and_dot_product_the_text_changes_nothing():
    network, (scales, pixels, text) = made(), given(2)
    for film in network.films:
        torch.nn.init.zeros_(film.change.weight)
    torch.nn.init.zeros_(network.ask.weight)
    assert torch.equal(network(scales, pixels, text), network(scales, pixels, text.flip(0)))


def test_the_length_of_a_cell_s_vector_does_not_matter():
    network, (scales, pixels, text) = made(), given(2)
    assert torch.allclose(network(scales, pixels, text), network([7 * scale for scale in scales], pixels, text), atol=1e-4)


def test_a_logit_is_a_readout_plus_the_dot_product_of_pixel_and_text():
    """With no readout and no FiLM, doubling the projection of the text doubles the logits; a text projected to zero gives zero."""
    network, (scales, pixels, text) = made(), given(2)
    for film in network.films:
        torch.nn.init.zeros_(film.change.weight)
    for layer in (network.last.weight, network.last.bias, network.ask.bias):
        torch.nn.init.zeros_(layer)
    before = network(scales, pixels, text)
    assert torch.allclose(network(scales, pixels, 2 * text), 2 * before, atol=1e-5)
    assert float(network(scales, pixels, 0 * text).detach().abs().max()) == 0
    assert float(before.detach().abs().max()) > 1e-2


def test_a_network_is_made_again_from_its_weights():
    network, (scales, pixels, text) = made(), given(2)
    again = FilmDecoder.of({name: value.detach() for name, value in network.state_dict().items()})
    assert torch.equal(again(scales, pixels, text), network(scales, pixels, text))


def test_first_weights_come_from_the_seed_and_leave_the_generator_alone():
    scales, before = given(1)[0], torch.random.get_rng_state()
    one, two, other = (FilmDecoder.drawn(scales, 6, 2, 16, seed).last.weight for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)
