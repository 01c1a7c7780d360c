import torch

from medtame.networks.prefix_decoder import Block, PrefixDecoder


def made(**changes):
    torch.manual_seed(0)
    return PrefixDecoder(**({"image": 7, "vectors": 3, "words": 11, "longest": 9, "width": 16, "layers": 2, "heads": 4} | changes))


def given(n: int = 3):
    random = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 7, generator=random), torch.randint(0, 11, (n, 9), generator=random)


def test_a_block_attends_to_itself_and_to_what_came_before():
    torch.manual_seed(0)
    block, hidden = Block(8, 2), torch.randn(2, 5, 8)
    asked = block.ask(block.before(hidden))
    slow = torch.empty_like(hidden)
    for row in range(2):
        for place in range(5):
            heads = []
            for head in range(2):
                query, key, value = (asked[row, :, 8 * part + 4 * head : 8 * part + 4 * head + 4] for part in range(3))
                weights = (query[place] @ key[: place + 1].T / 2).softmax(0)
                heads.append(weights @ value[: place + 1])
            mid = hidden[row, place] + block.join(torch.cat(heads))
            slow[row, place] = mid + block.narrow(torch.nn.functional.gelu(block.wide(block.after(mid))))
    assert torch.allclose(block(hidden), slow, atol=1e-5)


def test_a_later_word_never_changes_what_was_said_before():
    network, (image, ids) = made(), given()
    changed = ids.clone()
    changed[:, 5:] = 0
    assert torch.allclose(network(image, ids)[:, :5], network(image, changed)[:, :5], atol=1e-5)
    assert not torch.allclose(network(image, ids)[:, 5:], network(image, changed)[:, 5:], atol=1e-2)


def test_each_vector_of_the_image_reaches_every_word():
    network, (image, ids) = made(), given()
    for vector in range(3):
        changed = image.clone()
        changed[:, vector] += 1
        assert float((network(image, ids) - network(changed, ids)).abs().amax((0, 2)).min()) > 1e-4


def test_a_row_does_not_depend_on_its_batch():
    network, (image, ids) = made(), given()
    alone = torch.cat([network(image[[i]], ids[[i]]) for i in range(3)])
    assert torch.allclose(network(image, ids), alone, atol=1e-5)


def test_the_order_of_words_is_seen():
    network, (image, ids) = made(), given()
    turned = torch.cat([ids[:, :2].flip(1), ids[:, 2:]], 1)
    assert not torch.allclose(network(image, ids)[:, 2:], network(image, turned)[:, 2:], atol=1e-5)
