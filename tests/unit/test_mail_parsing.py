"""Parsed messages: the value of each field, which messages count as automatic, and that parsing never raises or takes
long.
"""

import io
import time
import tracemalloc
from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pytest

from plugins.mail.parsing import Address, Attachment, Limits, ParsedMessage, parse
from plugins.mail.parsing.attachments import safe_name
from tests.support.broken_mail import SEED, broken_messages, is_storable

NOON = datetime(2026, 3, 3, 12, tzinfo=UTC)


def read(raw: bytes | str, **options) -> ParsedMessage:
    content = raw.encode() if isinstance(raw, str) else raw
    return parse(io.BytesIO(content.replace(b"\n", b"\r\n")), NOON, **options)


def with_field(field: str) -> ParsedMessage:
    return read(f"From: ann@example.com\n{field}\n\nhello\n")


def multipart(*parts: str, kind: str = "mixed") -> str:
    inner = "".join(f"--b\n{part}\n" for part in parts)
    return f'Content-Type: multipart/{kind}; boundary="b"\n\npreamble\n{inner}--b--\nepilogue\n'


class TestFields:
    def test_a_usual_message(self):
        found = read("""From: "Ann, of Kent" <ann@example.com>
To: bob@example.com, =?utf-8?q?Zo=C3=AB?= <zoe@example.com>
Cc: team: tim@example.com, tom@example.com;
Reply-To: desk@example.com
Subject: =?iso-8859-1?q?gr=FC=DFe?=
 from =?utf-8?b?5pel5pys?=
Date: Tue, 3 Mar 2026 12:30:00 +0200
Message-ID: <1@example.com>
In-Reply-To: <0@example.com>
References: <-1@example.com>
 <0@example.com>

hello
there
""")

        assert found == ParsedMessage(
            sender=Address("Ann, of Kent", "ann@example.com"),
            to=(Address("", "bob@example.com"), Address("Zoë", "zoe@example.com")),
            cc=(Address("", "tim@example.com"), Address("", "tom@example.com")),
            reply_to=(Address("", "desk@example.com"),),
            subject="grüße from 日本",
            message_id="<1@example.com>",
            in_reply_to="<0@example.com>",
            references=("<-1@example.com>", "<0@example.com>"),
            date="Tue, 3 Mar 2026 12:30:00 +0200",
            sent_at=datetime(2026, 3, 3, 10, 30, tzinfo=UTC),
            text="hello\nthere",
            attachments=(),
            automatic=None,
            problems=(),
        )

    def test_a_message_of_nothing(self):
        found = read("")

        assert (found.sender, found.subject, found.message_id, found.text) == (None, "", None, "")

    def test_headers_in_plain_utf_8_and_latin_1_are_read(self):
        assert read("Subject: grüße\n\n").subject == "grüße"
        assert read("Subject: grüße\n\n".encode("latin-1")).subject == "grüße"

    def test_a_line_that_is_no_field_hides_none_after_it(self):
        assert read("Nonsense\nSubject: hello\n\ntext\n").subject == "hello"

    def test_a_subject_is_cut(self):
        assert len(with_field(f"Subject: {'x' * 5000}").subject) == 1000

    def test_what_postgresql_cannot_store_is_left_out(self):
        found = read(b"Subject: a\0b =?utf-8?q?=00=ED=A0=80?=c\n\nx\0y\x1b[31m\n")

        assert "\0" not in found.subject + found.text
        assert "\x1b" not in found.text
        (found.subject + found.text).encode()

    @pytest.mark.parametrize(
        ("date", "sent_at"),
        [
            ("Tue, 3 Mar 2026 12:00:00 -0000", NOON),
            ("Wed, 4 Mar 2026 12:00:00 +0000", NOON + timedelta(days=1)),
            ("Wed, 4 Mar 2026 12:00:01 +0000", None),
            ("Tue, 3 Mar 2096 12:00:00 +0000", None),
            ("Thu, 1 Jan 1970 00:00:00 +0000", None),
            ("Fri, 31 Dec 9999 23:00:00 -2300", None),
            ("yesterday", None),
            ("", None),
        ],
    )
    def test_a_date_that_cannot_be_right_is_kept_as_text_alone(self, date, sent_at):
        found = with_field(f"Date: {date}")

        assert (found.date, found.sent_at) == (date, sent_at)

    @pytest.mark.parametrize("message_id", ["<[x]@y>", "<a@b> <c@d>", "x <a@b>"])
    def test_a_strange_message_id_is_read(self, message_id):
        assert with_field(f"Message-ID: {message_id}").message_id == message_id.removeprefix("x ").split()[0]

    def test_of_many_references_the_last_ones_are_kept(self):
        found = with_field("References: " + " ".join(f"<{number}@x>" for number in range(1000)))

        assert found.references[0] == "<900@x>"
        assert found.references[-1] == "<999@x>"


class TestText:
    @pytest.mark.parametrize(
        ("charset", "encoded"),
        [
            ("utf-8", "grüße".encode()),
            ("iso-8859-1", "grüße".encode("latin-1")),
            ("nonsense", "grüße".encode()),
            ("nonsense", "grüße".encode("latin-1")),
            ("", "grüße".encode("latin-1")),
            ("zlib", "grüße".encode()),
            ("punycode", "grüße".encode()),
            ("utf-8\0", "grüße".encode()),
        ],
    )
    def test_a_charset_is_honoured_or_guessed(self, charset, encoded):
        head = f"Content-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: base64\n\n"

        assert read(head.encode() + b64encode(encoded)).text == "grüße"

    @pytest.mark.parametrize(
        ("encoding", "content", "text"),
        [
            ("base64", "aGVsbG8=", "hello"),
            ("base64", "aGVs\nbG8", "hello"),
            ("base64", "a!G?V sb G8", "hello"),
            ("base64", "====", ""),
            ("quoted-printable", "h=65llo=\n there", "hello there"),
            ("quoted-printable", "=ZZ=", "=ZZ"),
            ("QUOTED-PRINTABLE ", "h=65llo", "hello"),
            ("nonsense", "hello", "hello"),
        ],
    )
    def test_an_encoding_is_undone_as_far_as_it_goes(self, encoding, content, text):
        assert read(f"Content-Transfer-Encoding: {encoding}\n\n{content}").text == text

    def test_of_two_alternatives_the_plain_text_is_taken(self):
        found = read(
            multipart("Content-Type: text/plain\n\nplain", "Content-Type: text/html\n\n<p>rich</p>", kind="alternative")
        )

        assert (found.text, found.attachments) == ("plain", ())

    def test_of_html_alone_the_words_are_taken(self):
        found = read(
            "Content-Type: text/html\n\n<html><head><title>t</title></head><body>Dear&nbsp;Ann<br>1 < 2 &amp; 3"
            "<style>p {}</style><script>if (a</b) {}</script><p>bye</p></body></html>"
        )

        assert found.text == "Dear\xa0Ann\n1 < 2 & 3\nbye"

    def test_text_is_bounded(self):
        found = read("\n" + "x" * 5000, limits=Limits(text_bytes=1000))

        assert len(found.text) <= 1000
        assert found.problems == ("text of more than 1000 bytes",)

    def test_nested_parts_are_read_in_their_order(self):
        inner = (
            multipart("\none", "Content-Type: text/plain\n\ntwo").replace("--b", "--inner").replace('"b"', '"inner"')
        )

        assert read(multipart(inner, "\nthree")).text == "one\n\ntwo\n\nthree"

    def test_a_missing_last_boundary_loses_nothing(self):
        assert read(multipart("\none", "\ntwo").partition("--b--")[0]).text == "one\n\ntwo"

    def test_a_part_that_names_no_boundary_is_text(self):
        assert read("Content-Type: multipart/mixed\n\nhello").text == "hello"


class TestAttachments:
    def test_they_are_listed_with_their_size_and_not_decoded(self):
        content = b64encode(b"x" * 3000).decode()

        found = read(
            multipart(
                "\nhello",
                'Content-Type: application/pdf; name="bill.pdf"\nContent-Transfer-Encoding: base64\n\n' + content,
                "Content-Type: image/png\nContent-Disposition: inline; filename=logo.png\n\nxy",
                "Content-Type: text/plain\nContent-Disposition: attachment\n\nnotes",
                "Content-Type: message/rfc822\n\nSubject: inner\n\n--b2\n",
            )
        )

        assert found.text == "hello"
        assert [each.name for each in found.attachments] == [
            "bill.pdf",
            "logo.png",
            "attachment-3.txt",
            "attachment-4.eml",
        ]
        assert found.attachments[0] == Attachment("bill.pdf", "application/pdf", found.attachments[0].size, False)
        assert 3000 <= found.attachments[0].size <= 3003
        assert [each.is_inline for each in found.attachments] == [False, True, False, False]

    @pytest.mark.parametrize(
        ("disposition", "name"),
        [
            ("attachment; filename*=utf-8''%C3%A4.pdf", "ä.pdf"),
            ("attachment; filename*0*=utf-8''%C3%A4; filename*1=b.pdf", "äb.pdf"),
            ('attachment; filename="=?utf-8?b?w6QucGRm?="', "ä.pdf"),
            ('attachment; filename="ä.pdf"', "ä.pdf"),
            ('attachment; filename="../../etc/passwd"', "passwd"),
            ('attachment; filename="C:\\\\Windows\\\\x.exe"', "x.exe"),
        ],
    )
    def test_a_name_is_decoded_and_made_safe(self, disposition, name):
        found = read(multipart(f"Content-Type: application/pdf\nContent-Disposition: {disposition}\n\nx"))

        assert [each.name for each in found.attachments] == [name]

    @pytest.mark.parametrize(
        ("given", "name"),
        [
            ("", "attachment-3.bin"),
            (".", "attachment-3.bin"),
            ("..", "attachment-3.bin"),
            ("a/..", "attachment-3.bin"),
            ("/", "attachment-3.bin"),
            ("con.txt", "attachment-3.bin"),
            ("NUL", "attachment-3.bin"),
            (".bashrc", "bashrc"),
            ("a\0b.txt", "ab.txt"),
            ("a\nb.txt", "ab.txt"),
            ("evil\u202efdp.exe", "evilfdp.exe"),
            ("a" * 500 + ".pdf", "a" * 129 + ".pdf"),
            ("日" * 500 + ".pdf", "日" * 43 + ".pdf"),
            ("x." + "y" * 500, "x." + "y" * 148),
            ("what? <is> this|.txt", "what is this.txt"),
        ],
    )
    def test_a_name_is_safe_in_any_folder(self, given, name):
        assert safe_name(given, 3, "application/zip") == name
        assert len(name.encode()) <= 150

    def test_two_of_one_name_are_told_apart(self):
        part = "Content-Type: image/png; name={}\n\nx"

        found = read(multipart(part.format("a.png"), part.format("A.PNG"), part.format("a.png")))

        assert len({each.name.lower() for each in found.attachments}) == 3


class TestAutomatic:
    @pytest.mark.parametrize(
        ("field", "reason"),
        [
            ("Auto-Submitted: auto-replied", "auto-submitted: auto-replied"),
            ("Auto-Submitted: auto-generated; x", "auto-submitted: auto-generated; x"),
            ("Auto-Submitted: no", None),
            ("Auto-Submitted: No; really", None),
            ("Precedence: bulk", "precedence: bulk"),
            ("Precedence: List", "precedence: list"),
            ("Precedence: junk", "precedence: junk"),
            ("Precedence: auto_reply", "precedence: auto_reply"),
            ("Precedence: first-class", None),
            ("X-Auto-Response-Suppress: OOF", "x-auto-response-suppress: oof"),
            ("List-Id: <x.example.com>", "list-id"),
            ("List-Unsubscribe: <mailto:x>", "list-unsubscribe"),
            ("Return-Path: <>", "return-path: <>"),
            ("Return-Path: <ann@example.com>", None),
            ("Content-Type: multipart/report; boundary=b", "multipart/report"),
            ("Subject: Out of office", None),
        ],
    )
    def test_it_is_recognised_by_its_headers(self, field, reason):
        assert with_field(field).automatic == reason

    def test_a_message_from_the_mailbox_itself_is_one(self):
        assert read("From: Desk@Example.com\n\n", own={"desk@example.com"}).automatic == "sent from this mailbox"


class TestLimits:
    def test_parts_are_counted(self):
        found = read(multipart(*["Content-Type: image/png\n\nx"] * 2000), limits=Limits(attachments=5000))

        assert len(found.attachments) == 999  # and the message that contains them
        assert found.problems == ("more than 1000 parts",)

    def test_attachments_are_counted(self):
        found = read(multipart(*["Content-Type: image/png\n\nx"] * 300))

        assert len(found.attachments) == 200
        assert found.problems == ("more than 200 attachments",)

    def test_depth_is_counted(self):
        nested = "".join(f"Content-Type: multipart/mixed; boundary=b{depth}\n\n--b{depth}\n" for depth in range(2000))

        assert read(nested + "\nhello").problems == ("parts nested more than 50 deep",)

    def test_headers_are_counted_and_those_before_the_limit_are_read(self):
        found = read("Subject: hello\n" + "X-Filler: x\n" * 100_000 + "\ntext")

        assert (found.subject, found.text) == ("hello", "text")
        assert found.problems == ("headers of more than 262144 bytes",)

    def test_a_large_message_takes_little_memory(self):
        line = b"QUJD" * 19 + b"\r\n"
        head = b"Content-Type: application/zip\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        file = io.BytesIO(head + line * 100_000)
        tracemalloc.start()
        try:
            found = parse(file, NOON)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert found.attachments[0].size > 5_000_000
        assert peak < 3 << 20


@pytest.mark.parametrize(
    "content",
    [
        b"To: " + b"ann@example.com, " * 100_000,
        b"To: " + b"(" * 1_000_000,
        b'To: "' + b"\\" * 1_000_000,
        b"To: " + b"<" * 1_000_000,
        b"Subject: " + b"=?utf-8?q?a?= " * 100_000,
        b"Subject: " + b"=?" * 500_000,
        b"References: " + b"<a" * 500_000,
        b"References: " + b"<a@b>" * 200_000,
        b"Content-Type: text/plain; " + b"a=b; " * 200_000,
        b"Content-Type: text/plain; " + b"".join(b"name*%d*=a; " % number for number in range(50_000)),
        b'Content-Type: text/plain; name="' + b'\\"' * 500_000,
        b"Content-Type: text/html\r\n\r\n" + b"<" * 1_000_000,
        b"Content-Type: text/html\r\n\r\n" + b"<script" * 150_000,
        b"Content-Type: text/html\r\n\r\n" + b"&" * 1_000_000,
        b"Content-Type: text/html\r\n\r\n" + b"\n \n" * 330_000,
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n" * 300_000,
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--c\r\n" * 300_000,
        b"Date: " + b"1" * 1_000_000,
        b"A:" * 500_000,
        b"\r" * 1_000_000,
        b"\n" * 1_000_000,
        b" \n" * 500_000,
    ],
    ids=range(22),
)
def test_no_message_of_a_megabyte_takes_long(content):
    began = time.process_time()

    parse(io.BytesIO(content), NOON)

    assert time.process_time() - began < 10  # an algorithm of quadratic time would take minutes


def test_no_broken_message_raises_or_takes_long():
    began = time.process_time()

    for content in broken_messages(SEED, 2000):
        assert is_storable(parse(io.BytesIO(content), NOON, own={"ann@example.com"}))

    assert time.process_time() - began < 20
