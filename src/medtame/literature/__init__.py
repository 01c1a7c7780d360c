"""The review's literature: its 153 papers and 68 models as checked tables, and what can be asked of them.

Facts come from the open repository of the review (`haonenglin/Awesome-VLM-for-MIA`) and from the papers' abstracts; `evidence`
says on which of them the labels of a paper rest. The five adaptation strategies are medtame's own reading: the review counts five
and its abstract does not name them.
"""
