"""Texts that try to break out of an HTML page, and a page that has each of them in every field."""

from brim.report.layout import sections
from brim.report.lead import Lead
from brim.report.outputs import Output
from brim.report.page import render_report
from brim.support.figures import Figure
from brim.support.tables import Cell, Table, plain_table

PWN = "alert(1);window.__pwned=1"
HOSTILE = [
    # Elements
    f"<script>{PWN}</script>",
    f"</script><script>{PWN}</script>",
    f"</ScRiPt ><sCrIpT>{PWN}</sCrIpT>",
    f"<scr<script>ipt>{PWN}</scr</script>ipt>",
    f"<script type=module>{PWN}</script>",
    f"<script src='data:text/javascript,{PWN}'></script>",
    "<script src=https://example.com/x.js></script>",
    f"<iframe srcdoc='<script>parent.{PWN}</script>'></iframe>",
    f"<object data='javascript:{PWN}'></object><embed src='javascript:{PWN}'>",
    "<base href='https://example.com/'>",
    '<meta http-equiv="refresh" content="0;url=https://example.com/">',
    '<link rel="stylesheet" href="https://example.com/x.css">',
    "<style>@import 'https://example.com/x.css'; body{display:none}</style>",
    f"<form action='javascript:{PWN}'><button autofocus>go</button></form>",
    # Ends of what they may stand in
    f"</style></title></head><script>{PWN}</script>",
    f"</td></tr></table><script>{PWN}</script>",
    f"</textarea></pre></select></option><script>{PWN}</script>",
    f"</noscript><script>{PWN}</script>",
    f"<!-- --><script>{PWN}</script><!--",
    f"--!><script>{PWN}</script>",
    f"]]><![CDATA[<script>{PWN}</script>",
    # Attributes and event handlers
    f'"><img src=x onerror="{PWN}">',
    f"'><svg onload='{PWN}'>",
    f'" onmouseover="{PWN}" autofocus onfocus="{PWN}" x="',
    f"' onclick='{PWN}' tabindex=1 style='position:fixed;inset:0",
    f"` onload=`{PWN}`",
    f"<details open ontoggle={PWN}><summary>x</summary></details>",
    f"<img src=https://example.com/x.png onload={PWN}>",
    # Addresses and drawings
    f'<a href="javascript:{PWN}">x</a>',
    f'<a href="java\tscript:{PWN}">x</a>',
    f"<svg><animate onbegin={PWN} attributeName=x dur=1s></svg>",
    f"<math><mtext><table><mglyph><style><img src onerror={PWN}>",
    # JSON and scripts
    f'"}}]}}</script><script>{PWN}//',
    f'\\"}}]; {PWN} //',
    f"\\u003cscript\\u003e{PWN}\\u003c/script\\u003e \u2028{PWN}\u2029",
    '{"__proto__": {"shown": true}} __proto__',
    # Templates, entities, characters that are not seen
    "{{ 7*7 }} {% raw %} ${7*7} #{7*7} <%= 7*7 %>",
    "&lt;b&gt; &amp;amp; &#60;script&#62; &quot",
    "\u202eright to left\u202c \u2066\u200b\ufeff \x00 \x1b[31m \x7f \ufffe \uff1cscript\uff1e",
    "wide" * 100,
]

PICTURE = b"<svg xmlns='http://www.w3.org/2000/svg' width='40' height='30'>%s</svg>"
DRAWING = b"<rect width='40' height='30' style='fill:#0a0'/><script>parent.__pwned=1</script>"


def hostile_page() -> str:
    """A report with every one of the texts in every field that takes text."""
    tables = [
        Table(
            name=text,
            title=text,
            head=("name", text),
            rows=((Cell(text, note=text), Cell(text, best=True, significant=True, note=text)),),
            caption=text,
        )
        for text in HOSTILE
    ]
    figures = [Figure(text, text, b"", PICTURE % DRAWING, text) for text in HOSTILE]
    return render_report(
        Lead(
            " ".join(HOSTILE), " ".join(HOSTILE), [(t, [t]) for t in HOSTILE], HOSTILE, HOSTILE[0]
        ),
        sections(tables, figures, paper=True),
        outputs=[
            Output(
                id=text,
                prompt=text,
                references=(text,),
                texts=dict.fromkeys(HOSTILE, text),
                numbers={label: {text: 1.0} for label in HOSTILE},
            )
            for text in HOSTILE
        ],
        systems=HOSTILE,
        colors={text: f"#{i:06x}" for i, text in enumerate(HOSTILE)},
        settings={text: f"a: 1\n{text}\n" for text in HOSTILE},
        facts=plain_table([["", *HOSTILE], *([text] * (len(HOSTILE) + 1) for text in HOSTILE)]),
        choice=" ".join(HOSTILE),
    )
