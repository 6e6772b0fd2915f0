// The Markdown of the page: what it understands, and that it takes any text in linear time.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { BlockReader, parseBlocks } from "../../services/tuneloop/gateway/web/markdown/blocks.js";
import { MarkdownView, markdown } from "../../services/tuneloop/gateway/web/markdown.js";
import { counts, written } from "./fake-dom.mjs";
import { workOf } from "./work.mjs";

/** The tree as one would write it. */
function tree(text, level) {
  return parseBlocks(text, level).map(asText).join("");
}

function asText(node) {
  if (typeof node === "string") return node;
  if (node.tag === "pre") return `<pre ${node.language}>${node.text}</pre>`;
  const detail = node.href ?? node.start;
  const inside = node.children.map(asText).join("");
  return `<${node.tag}${detail ? ` ${detail}` : ""}>${inside}</${node.tag}>`;
}

function shows(name, cases) {
  describe(name, () => {
    for (const [text, expected] of cases) {
      test(JSON.stringify(text), () => assert.equal(tree(text), expected));
    }
  });
}

shows("emphasis", [
  [
    "*a* _b_ **c** __d__ ~~e~~",
    "<p><em>a</em> <em>b</em> <strong>c</strong> <strong>d</strong> <s>e</s></p>",
  ],
  ["***a***", "<p><em><strong>a</strong></em></p>"],
  ["**bold with *italic* inside**", "<p><strong>bold with <em>italic</em> inside</strong></p>"],
  ["*italic with **bold** inside*", "<p><em>italic with <strong>bold</strong> inside</em></p>"],
  ["***a** b*", "<p><em><strong>a</strong> b</em></p>"],
  ["**a *b***", "<p><strong>a <em>b</em></strong></p>"],
  ["*a **b* c", "<p>*a *<em>b</em> c</p>"],
  ["*foo**bar*", "<p><em>foo**bar</em></p>"],
  ["**bold**ly", "<p><strong>bold</strong>ly</p>"],
  ["**“quoted”**said", "<p><strong>“quoted”</strong>said</p>"],
  ["**a\nb**", "<p><strong>a\nb</strong></p>"],
  ["snake_case_name and __init__.py", "<p>snake_case_name and <strong>init</strong>.py</p>"],
  ["2*3*4 and 5 * 6 * 7", "<p>2*3*4 and 5 * 6 * 7</p>"],
  ["**open", "<p>**open</p>"],
  ["a ~tilde~ ~~~ ****", "<p>a ~tilde~ ~~~ ****</p>"],
  ["\\*a\\* \\\\ \\n", "<p>*a* \\ \\n</p>"],
]);

shows("code in a line", [
  ["`a` ``b ` c`` ` d", "<p><code>a</code> <code>b ` c</code> ` d</p>"],
  ["`` `a` ``", "<p><code>`a`</code></p>"],
  ["`**a**` and **`b`**", "<p><code>**a**</code> and <strong><code>b</code></strong></p>"],
  ["`a\\` b`", "<p><code>a\\</code> b`</p>"],
  ["```a``` b", "<p><code>a</code> b</p>"],
]);

shows("links and images", [
  ["[a](https://e.org/b_c_d)", "<p><a https://e.org/b_c_d>a</a></p>"],
  [
    "[a **b** `c`](https://e.org)",
    "<p><a https://e.org>a <strong>b</strong> <code>c</code></a></p>",
  ],
  ["[a](https://e.org/x_(y))", "<p><a https://e.org/x_(y)>a</a></p>"],
  ["**[a](https://e.org)**", "<p><strong><a https://e.org>a</a></strong></p>"],
  ["*a [b* c](https://e.org)", "<p>*a <a https://e.org>b* c</a></p>"],
  ["[x] [a](not this) [b]( ) []()", "<p>[x] [a](not this) [b]( ) []()</p>"],
  ["[a](javascript:alert(1))", "<p><span>a</span></p>"],
  ["![a *cat*](https://e.org/cat.png)", "<p><a https://e.org/cat.png>a *cat*</a></p>"],
  ["![](https://e.org/cat.png)", "<p><a https://e.org/cat.png>https://e.org/cat.png</a></p>"],
  ["![x](data:image/png;base64,AA)", "<p><span>x</span></p>"],
  ["[![a](https://e.org/i.svg)](https://e.org)", "<p><a https://e.org><span>a</span></a></p>"],
  ["[a [b](https://b.org) c](d)", "<p>[a <a https://b.org>b</a> c](d)</p>"],
  [
    "see https://e.org/a_b, or (https://e.org/c_(d)).",
    "<p>see <a https://e.org/a_b>https://e.org/a_b</a>, or (<a https://e.org/c_(d)>https://e.org/c_(d)</a>).</p>",
  ],
  [
    "[see https://a.org](https://b.org)",
    "<p><a https://b.org>see <span>https://a.org</span></a></p>",
  ],
  ["https:// xhttps://a.org", "<p>https:// xhttps://a.org</p>"],
]);

shows("fences", [
  ["```js\na\n```\nb", "<pre js>a</pre><p>b</p>"],
  ["~~~\n```\n~~~", "<pre >```</pre>"],
  ["````md\n```\na\n```\n````", "<pre md>```\na\n```</pre>"],
  ["```\n~~~\n```", "<pre >~~~</pre>"],
  ["~~~~ python title=x\na\n~~~\n~~~~~", "<pre python>a\n~~~</pre>"],
  ["```\n```js\n```", "<pre >```js</pre>"],
  ["```c\nopen\n\n**a**", "<pre c>open\n\n**a**</pre>"],
  ["a\n```\nb\n```", "<p>a</p><pre >b</pre>"],
  [
    "- x\n\n  ```py\n  if a:\n      b\n  ```\n- y",
    "<ul><li>x<pre py>if a:\n    b</pre></li><li>y</li></ul>",
  ],
]);

shows("tables", [
  [
    "| a | b |\n|---|:-:|\n| 1 | **2** |",
    "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><strong>2</strong></td></tr></tbody></table>",
  ],
  [
    "a|b\n-|-\n1|2",
    "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>",
  ],
  [
    "| a |\n|---|\n| x \\| y `p\\|q` |",
    "<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>x | y <code>p|q</code></td></tr></tbody></table>",
  ],
  [
    "| a |\n|---|\n| 1 | 2 |\n|\n",
    "<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1</td></tr><tr></tr></tbody></table>",
  ],
  [
    "So:\n| a |\n|---|\n\nb",
    "<p>So:</p><table><thead><tr><th>a</th></tr></thead><tbody></tbody></table><p>b</p>",
  ],
  ["| a | b |\n|---|", "<p>| a | b |\n|---|</p>"],
  ["a | b\n\n| c", "<p>a | b</p><p>| c</p>"],
]);

shows("blocks", [
  ["# A\n## B\ntext\n# C", "<h2>A</h2><h3>B</h3><p>text</p><h2>C</h2>"],
  ["#### A\n## B\n#### C #", "<h2>A</h2><h2>B</h2><h3>C</h3>"],
  ["#a\n####### b\n# ", "<p>#a\n####### b\n#</p>"],
  ["a\n---\n* * *\n___", "<p>a</p><hr></hr><hr></hr><hr></hr>"],
  ["> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"],
  ["> # a\n> - b", "<blockquote><h2>a</h2><ul><li>b</li></ul></blockquote>"],
  [
    "- a\n- b\n  - c\n    d\n\n- e",
    "<ul><li>a</li><li>b<ul><li>c\nd</li></ul></li><li>e</li></ul>",
  ],
  [
    "3. a\n4) b\n   - c\n- d",
    "<ol 3><li>a</li><li>b<ul><li>c</li></ul></li></ol><ul><li>d</li></ul>",
  ],
  ["1. a\n\n   b\n\nc", "<ol><li>a<p>b</p></li></ol><p>c</p>"],
  ["• a\n+ b", "<ul><li>a</li><li>b</li></ul>"],
  ["-a\n12.\n1234567890. b", "<p>-a\n12.\n1234567890. b</p>"],
  ["a\r\nb\r\rc", "<p>a\nb</p><p>c</p>"],
  ["", ""],
  [" \n\n", ""],
]);

test("headings begin at the level that is asked for and end at six", () => {
  assert.equal(tree("# A\n## B\n### C\n#### D", 4), "<h4>A</h4><h5>B</h5><h6>C</h6><h6>D</h6>");
});

describe("elements", () => {
  test("what a model writes stays text", () => {
    const html = "<b>x</b> <img src=x onerror=alert(1)> **a**\n\n```html\n<script>1</script>\n```";
    const [paragraph, code] = markdown(html).childNodes;
    assert.equal(
      written(paragraph),
      "<p>" + "<b>x</b> <img src=x onerror=alert(1)> " + "<strong>a</strong></p>",
    );
    assert.deepEqual(
      paragraph.childNodes.map((node) => node.name),
      [undefined, "strong"],
    );
    assert.equal(code.lastChild.textContent, "<script>1</script>");
  });

  test("links open in a tab of their own", () => {
    assert.equal(
      written(markdown("[a](https://e.org)").firstChild),
      '<p><a href="https://e.org" target="_blank" rel="noopener noreferrer nofollow">a</a></p>',
    );
  });

  test("a table scrolls and names its columns", () => {
    assert.equal(
      written(markdown("| a |\n|---|\n| 1 |").firstChild),
      '<div class="scrolls" tabindex="0" role="group" aria-label="Table"><table><thead><tr>' +
        '<th scope="col">a</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table></div>',
    );
  });
});

/* streams */

const ANSWER = [
  "# Title\n\nSome *words* and `code`.\n",
  "- one\n- two\n  - three **four**\n\n1. five\n2. six\n",
  "```js\nconst a = 1;\n\nconst b = 2;\n```\n",
  "So:\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n",
  "> quoted\n> - [link](https://e.org)\n\n## Next\nhttps://e.org/x_y and more\n---\n",
].join("\n");

describe("a stream", () => {
  test("ends as the whole text would", () => {
    const view = new MarkdownView();
    for (let end = 1; end <= ANSWER.length; end += 1) {
      view.show(ANSWER.slice(0, end));
      assert.equal(written(view.node), written(markdown(ANSWER.slice(0, end))));
    }
  });

  test("keeps the nodes of what did not change", () => {
    const view = new MarkdownView();
    let before = [];
    for (let end = 1; end <= ANSWER.length; end += 3) {
      view.show(ANSWER.slice(0, end));
      const kept = before.slice(0, -2);
      assert.deepEqual(
        view.node.childNodes.slice(0, kept.length).map((n) => kept.indexOf(n)),
        [...kept.keys()],
      );
      before = [...view.node.childNodes];
    }
  });

  test("changes nothing where nothing was added", () => {
    const view = new MarkdownView().show(ANSWER);
    const before = { ...counts };
    view.show(ANSWER).show(`${ANSWER}\n`);
    assert.deepEqual(counts, before);
  });

  test("adds to one node for one more word, however much there is already", () => {
    for (const start of ["", "```\n", "- ", "| a |\n|---|\n| "]) {
      const view = new MarkdownView();
      let text = ANSWER.repeat(20) + start;
      view.show(`${text}word`);
      for (let words = 0; words < 50; words += 1) {
        const { made, changed } = counts;
        text += "word ";
        view.show(`${text}word`);
        assert.deepEqual([counts.made - made, counts.changed - changed], [0, 1]);
      }
    }
  });

  test("that begins again is another text", () => {
    const view = new MarkdownView().show("# One\n\ntwo\n\nthree");
    assert.equal(written(view.show("four").node), written(markdown("four")));
    assert.equal(written(view.show("").node), '<div class="text"></div>');
  });

  test("reads the same as the whole, for any text", () => {
    const pieces = [
      ..."\n\n\n  *_`~#>-|[]()!\\:1.\r\ta",
      "\n- ",
      "\n> ",
      "```",
      "|-|",
      "\n---",
      "https://e",
    ];
    const random = generator(7);
    for (let round = 0; round < 400; round += 1) {
      const reader = new BlockReader();
      let text = "";
      for (let step = 0; step < 30; step += 1) {
        text += pieces[random() % pieces.length];
        assert.deepEqual(reader.read(text), parseBlocks(text), JSON.stringify(text));
      }
    }
  });
});

function generator(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 8;
  };
}

/* hostile texts */

const ticks = (size) => Array.from({ length: size ** 0.5 }, (_, index) => "`".repeat(index + 1));
const stairs = (size) =>
  Array.from({ length: 5 * size ** 0.5 }, (_, index) => `${" ".repeat(2 * index)}- a`);

const HOSTILE = {
  "unclosed bold": (size) => "**a ".repeat(size),
  "unclosed bold and italic": (size) => "**a *b ".repeat(size),
  "unclosed of each kind": (size) => "*a _b __c ~~d ***e ".repeat(size),
  "closed and never opened": (size) => "a** b* ".repeat(size),
  "opened many times, closed many times": (size) => "*a ".repeat(size) + "b* ".repeat(size),
  "delimiters that may do either": (size) => "a**b".repeat(size),
  "delimiters of changing length": (size) => "a*b**c***".repeat(size),
  "one run": (size) => "*".repeat(size),
  "runs that are too long": (size) => "****a ".repeat(size),
  "backticks of every length": (size) => ticks(size).join(" "),
  "backticks that do not match": (size) => `\`\`${" ` a".repeat(size)}`,
  escapes: (size) => "\\".repeat(size),
  "opening brackets": (size) => "[".repeat(size),
  "closing brackets": (size) => "]".repeat(size),
  "brackets in brackets": (size) => "[".repeat(size) + "]".repeat(size),
  "links that do not end": (size) => "[a](b".repeat(size),
  "links that do not end, after spaces": (size) => "[a]( b".repeat(size),
  "links in links": (size) => "[a ".repeat(size) + "](b)".repeat(size),
  "links after an open bracket": (size) => "[".repeat(size) + "[a](b)".repeat(size),
  "images in images": (size) => "![a ".repeat(size) + "](b)".repeat(size),
  "links after open images": (size) => "![".repeat(size) + "[a](b)".repeat(size),
  "parentheses in a target": (size) => `[a](${"(".repeat(size)}${")".repeat(size)}`,
  schemes: (size) => "https://".repeat(size),
  "schemes and nothing": (size) => "https:// ".repeat(size),
  "a URL that ends in punctuation": (size) => `https://${".".repeat(size)}`,
  "URLs in brackets": (size) => "(https://a".repeat(size),
  "quotes in a row": (size) => ">".repeat(size),
  "quotes in a row, spaced": (size) => "> ".repeat(size),
  "lines of quotes in quotes": (size) => `${">".repeat(20)}a\n`.repeat(size),
  "bullets in a row": (size) => `${"- ".repeat(size)}a`,
  "numbers in a row": (size) => "1. ".repeat(size),
  "bullets and quotes in a row": (size) => "- > ".repeat(size),
  "lists in lists": (size) => stairs(size).join("\n"),
  "items with empty lines": (size) => "- a\n\n\n".repeat(size),
  "an item and empty lines": (size) => `- a${"\n".repeat(size)}b`,
  "items that change their kind": (size) => "- a\n1. b\n".repeat(size),
  "almost rules": (size) => `${"- ".repeat(size)}x\n${"---  ".repeat(size)}x`,
  "headings that do not close": (size) => `# ${" #".repeat(size)}a`,
  headings: (size) => "# a\n".repeat(size),
  "fences that open and close": (size) => "```\n".repeat(size),
  "fences that never close": (size) => "```\n~~~\n````a\n".repeat(size),
  "a fence of one run": (size) => `${"`".repeat(size)}\n${"`".repeat(size - 1)}`,
  pipes: (size) => "|".repeat(size),
  "a table of many columns and many rows": (size) =>
    `${"|a".repeat(size)}\n${"|-".repeat(size)}\n${"|\n".repeat(size)}`,
  "rows that begin no table": (size) => "|a\n|-|-\n".repeat(size),
  "rows with escapes": (size) => `|a\n|-\n${"|\\|".repeat(size)}`,
  "empty lines": (size) => "\n".repeat(size),
  spaces: (size) => `${" ".repeat(size)}x`,
  "spaces before each line": (size) => `${" ".repeat(40)}x\n`.repeat(size),
  "carriage returns": (size) => "\r".repeat(size),
  "one letter a line": (size) => "a\n".repeat(size),
};

describe("hostile texts take work in proportion to their length:", () => {
  for (const [name, make] of Object.entries(HOSTILE)) {
    test(name, async () => {
      const cost = async (size) => {
        const text = make(size);
        return (await workOf(() => parseBlocks(text))) / text.length;
      };
      const [small, large] = [await cost(500), await cost(4000)];
      assert.ok(large < 1.3 * small, `${small.toFixed(1)} a character, then ${large.toFixed(1)}`);
    });
  }
});

describe("hostile texts are shown whole and nested no deeper than a browser can bear:", () => {
  for (const [name, make] of Object.entries(HOSTILE)) {
    test(name, () => assert.ok(depthOf(markdown(make(20_000))) < 100));
  }

  test("4,000 unclosed `**a ` keep their text", () => {
    const text = "**a ".repeat(4000);
    assert.equal(tree(text), `<p>${text.trim()}</p>`);
  });

  test("what is closed after 4,000 unclosed is still bold", () => {
    assert.match(tree(`${"**a ".repeat(4000)}**b**`), /a <strong>b<\/strong><\/p>$/);
  });

  test("of 2,000 `>` in a row the first are quotes and the others text", () => {
    const shown = tree(`${">".repeat(2000)}a`);
    assert.equal(shown.split("<blockquote>").length - 1, 16);
    assert.ok(shown.includes(`<p>${">".repeat(1984)}a</p>`));
  });
});

function depthOf(node) {
  return 1 + (node.childNodes ?? []).reduce((deepest, one) => Math.max(deepest, depthOf(one)), 0);
}
