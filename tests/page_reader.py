"""Reads a page of HTML into a tree, and minds that every tag is closed."""

from __future__ import annotations

import html.parser


class Node:
    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children = tag, {name: value or "" for name, value in attributes}, []

    def all(self, tag=None, **attributes):
        """All nodes below with this tag and these attributes, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                if tag in (None, child.tag) and attributes.items() <= child.attributes.items():
                    found.append(child)
                found += child.all(tag, **attributes)
        return found

    def text(self):
        return "".join(child if isinstance(child, str) else child.text() for child in self.children)

    def figures(self):
        return [float(node.attributes["value"]) for node in self.all("data")]


class Reader(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.root = Node("root", [])
        self._open = [self.root]
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        node = Node(tag, attrs)
        self._open[-1].children.append(node)
        if tag != "meta":
            self._open.append(node)

    def handle_startendtag(self, tag, attrs):
        self._open[-1].children.append(Node(tag, attrs))

    def handle_endtag(self, tag):
        assert self._open.pop().tag == tag, f"</{tag}> does not match"

    def handle_data(self, data):
        self._open[-1].children.append(data)
