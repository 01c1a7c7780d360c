"""Readers: one small file a format. Each gives a `Table` of text cells; `medtame.data.manifest` checks it."""
