//! YAML as raw text with line numbers.
//!
//! A plain scalar stays the text that was written: whether `0123` is a number is for the reader of the option to say,
//! and a token must not lose its leading zero on the way.

use std::borrow::Cow;
use std::collections::BTreeMap;

use figment::value::{Dict, Empty, Tag, Value};
use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::place::Path;

/// Aliases may multiply; this bounds what they multiply to.
const MAX_NODES: usize = 500_000;
const MAX_DEPTH: usize = 32;

/// The line of every value, by its path.
pub(super) type Lines = BTreeMap<Path, usize>;

/// A parsed document.
#[derive(Debug, Default)]
pub(super) struct Document {
    /// Mapping, list, text or nothing.
    pub root: Option<Value>,
    pub lines: Lines,
    /// Fields that a mapping holds twice: their path, both lines.
    pub twice: Vec<(Path, usize, usize)>,
}

/// Why a text is not a document.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub line: usize,
    pub column: usize,
    pub what: String,
}

/// Parses one document.
pub(super) fn parse(text: &str) -> Result<Document, SyntaxError> {
    let mut builder = Builder { parser: Parser::new_from_str(text), anchors: BTreeMap::new(), nodes: 0 };
    let mut document = Document::default();
    let mut seen = false;
    loop {
        match builder.next()? {
            (Event::StreamEnd, _) => return Ok(document),
            (Event::DocumentStart(_), span) if seen => return Err(at(span, "a second document; keep one")),
            (Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing, _) => {}
            (event, span) => {
                seen = true;
                let root = builder.node(event, span, 0)?;
                document.root = Some(root.place(&Path::default(), &mut document));
            }
        }
    }
}

fn at(span: Span, what: impl Into<String>) -> SyntaxError {
    SyntaxError { line: span.start.line(), column: span.start.col() + 1, what: what.into() }
}

#[derive(Clone)]
struct Node {
    line: usize,
    kind: Kind,
    /// How many nodes it is, itself included.
    size: usize,
}

#[derive(Clone)]
enum Kind {
    Null,
    Text(String),
    List(Vec<Node>),
    Mapping(Vec<(String, Node)>),
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl<'t> Builder<'t> {
    fn next(&mut self) -> Result<(Event<'t>, Span), SyntaxError> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(SyntaxError {
                line: error.marker().line(),
                column: error.marker().col() + 1,
                what: format!("not valid YAML: {}", error.info()),
            }),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, SyntaxError> {
        if depth > MAX_DEPTH {
            return Err(at(span, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let (anchor, kind) = match event {
            Event::Alias(anchor) => return self.alias(anchor, span),
            Event::Scalar(text, style, anchor, tag) => (anchor, scalar(text, style, tag.as_deref(), span)?),
            Event::SequenceStart(anchor, tag) => {
                known(tag.as_deref(), span)?;
                (anchor, self.list(depth)?)
            }
            Event::MappingStart(anchor, tag) => {
                known(tag.as_deref(), span)?;
                (anchor, self.mapping(depth)?)
            }
            _ => return Err(at(span, "not valid YAML: a value was expected")),
        };
        let size = 1 + match &kind {
            Kind::List(items) => items.iter().map(|n| n.size).sum(),
            Kind::Mapping(fields) => fields.iter().map(|(_, n)| n.size).sum(),
            Kind::Null | Kind::Text(_) => 0,
        };
        self.count(1, span)?;
        let node = Node { line: span.start.line(), kind, size };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<Node, SyntaxError> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(at(span, "an alias inside the value that it stands for; write it out"));
        };
        let size = node.size;
        let mut node = node.clone();
        node.line = span.start.line();
        self.count(size, span)?;
        Ok(node)
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<(), SyntaxError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES { Err(at(span, format!("more than {MAX_NODES} values"))) } else { Ok(()) }
    }

    fn list(&mut self, depth: usize) -> Result<Kind, SyntaxError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Kind::List(items)),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Kind, SyntaxError> {
        let mut fields = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Kind::Mapping(fields));
            }
            let name = match self.node(event, span, depth + 1)?.kind {
                Kind::Text(name) => name,
                Kind::Null => "null".to_owned(),
                Kind::List(_) | Kind::Mapping(_) => return Err(at(span, "a field's name must be text")),
            };
            let (event, value_span) = self.next()?;
            let mut value = self.node(event, value_span, depth + 1)?;
            // A mistake in a field is looked for where its name stands.
            value.line = span.start.line();
            fields.push((name, value));
        }
    }
}

fn scalar(
    text: Cow<'_, str>,
    style: ScalarStyle,
    tag: Option<&saphyr_parser::Tag>,
    span: Span,
) -> Result<Kind, SyntaxError> {
    known(tag, span)?;
    let null =
        style == ScalarStyle::Plain && tag.is_none() && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
    Ok(if null { Kind::Null } else { Kind::Text(text.into_owned()) })
}

/// A tag such as `!include` would mean something; to ignore it would be to misread.
fn known(tag: Option<&saphyr_parser::Tag>, span: Span) -> Result<(), SyntaxError> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => {
            Err(at(span, "tags (`!…`) are not supported; quote the text"))
        }
        _ => Ok(()),
    }
}

impl Node {
    fn place(self, path: &Path, document: &mut Document) -> Value {
        document.lines.insert(path.clone(), self.line);
        match self.kind {
            Kind::Null => Value::Empty(Tag::Default, Empty::None),
            Kind::Text(text) => Value::String(Tag::Default, text),
            Kind::List(items) => {
                let items = items.into_iter().enumerate();
                Value::Array(Tag::Default, items.map(|(i, n)| n.place(&path.index(i), document)).collect())
            }
            Kind::Mapping(fields) => {
                let mut dict = Dict::new();
                for (name, node) in fields {
                    let path = path.name(&name);
                    if let Some(&first) = document.lines.get(&path) {
                        document.twice.push((path, first, node.line));
                    } else {
                        dict.insert(name, node.place(&path, document));
                    }
                }
                Value::Dict(Tag::Default, dict)
            }
        }
    }
}
