"""Pages of the HTTP service, read as a browser without scripts reads them."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urljoin

BROWSER = {"Accept": "text/html,application/xhtml+xml"}
OURS = {**BROWSER, "Sec-Fetch-Site": "same-origin"}
VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}


@dataclass
class Form:
    """A form: where it is sent, and its fields with their values."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    #: The hidden fields, each with all its values.
    hidden: dict[str, list[str]] = field(default_factory=dict)


class Read(HTMLParser):
    """A page: its links, its forms, its text, and whether its elements are nested well."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.forms: list[Form] = []
        self.ids: list[str] = []
        self.inline: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == [], f"left open: {self.open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        if "id" in given:
            self.ids.append(given["id"])
        if tag in {"a", "link"} and "href" in given:
            self.links.append(given["href"])
        if tag == "script":
            self.links.append(given["src"])
        if tag == "form":
            self.forms.append(Form(given.get("action", ""), given.get("method", "get")))
        if tag in {"input", "button", "select", "textarea"} and self.forms and "name" in given:
            self.forms[-1].fields.setdefault(given["name"], given.get("value", ""))
            if given.get("type") == "hidden":
                self.forms[-1].hidden.setdefault(given["name"], []).append(given.get("value", ""))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without its beginning"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    def posts(self) -> set[str]:
        """The addresses of forms that change something."""
        return {form.action for form in self.forms if form.method == "post"}


def read(answer) -> Read:
    """The page that was answered."""
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8", answer.text
    return Read(answer.text)


def local(page: Read, address: str) -> list[str]:
    """The links of a page to this service, without their fragments."""
    found = {urljoin(address, link).partition("#")[0] for link in page.links}
    assert all(link.startswith("http://127.0.0.1:9190/") for link in found), found
    return sorted(found)
