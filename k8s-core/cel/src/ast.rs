//! The syntax tree: expressions in one vector. Macros stay unexpanded, and chains of `&&` or `||` are one
//! node each.

/// Maximum nesting depth, as in upstream's parser.
pub(super) const MAX_DEPTH: u16 = 250;

/// Index of an expression in its tree.
pub(super) type Id = u32;

/// A literal: `null`, a boolean, a number, a string or bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
}

/// Kind of a loop macro.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoopKind {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
    TransformMap,
    TransformMapEntry,
}

/// A loop macro over a list or a map.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Loop {
    pub(super) kind: LoopKind,
    /// Name of the macro.
    pub(super) name: &'static str,
    pub(super) range: Id,
    pub(super) variable: String,
    pub(super) second: Option<String>,
    /// Condition of the elements to be processed; default: all.
    pub(super) filter: Option<Id>,
    pub(super) body: Id,
}

/// A node of the syntax tree; children are indices into the tree.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    Literal(Literal),
    /// A name; with a leading dot it is resolved from the root.
    Ident(String),
    Select {
        operand: Id,
        field: String,
        optional: bool,
    },
    /// `has(operand.field)`: the field is set.
    Has {
        operand: Id,
        field: String,
    },
    Call {
        function: String,
        target: Option<Id>,
        args: Vec<Id>,
    },
    And(Vec<Id>),
    Or(Vec<Id>),
    Conditional(Id, Id, Id),
    /// Elements; `true` marks optional elements, which are omitted if they are none.
    List(Vec<(Id, bool)>),
    Map(Vec<(Id, Id, bool)>),
    Struct {
        name: String,
        fields: Vec<(String, Id, bool)>,
    },
    Loop(Loop),
    /// `cel.bind(name, value, body)`: a name for the value in the body.
    Bind {
        name: String,
        value: Id,
        body: Id,
    },
    /// `operand.optMap(name, body)`; with `flat` the body is optional itself (`optFlatMap`).
    OptMap {
        operand: Id,
        name: String,
        body: Id,
        flat: bool,
    },
}

/// An expression and its position in the text.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) expr: Expr,
    pub(super) at: u32,
    pub(super) depth: u16,
}

/// The nodes of an expression, with their positions in the text.
#[derive(Clone, Debug, Default)]
pub(super) struct Ast {
    pub(super) nodes: Vec<Node>,
    pub(super) root: Id,
}

impl Expr {
    /// Returns the direct subexpressions.
    pub(super) fn children(&self) -> Vec<Id> {
        match self {
            Expr::Literal(_) | Expr::Ident(_) => Vec::new(),
            Expr::Select { operand, .. } | Expr::Has { operand, .. } => vec![*operand],
            Expr::Call { target, args, .. } => target.iter().chain(args).copied().collect(),
            Expr::And(terms) | Expr::Or(terms) => terms.clone(),
            Expr::Conditional(a, b, c) => vec![*a, *b, *c],
            Expr::List(elements) => elements.iter().map(|(id, _)| *id).collect(),
            Expr::Map(entries) => entries.iter().flat_map(|(k, v, _)| [*k, *v]).collect(),
            Expr::Struct { fields, .. } => fields.iter().map(|(_, id, _)| *id).collect(),
            Expr::Loop(l) => [l.range, l.body].into_iter().chain(l.filter).collect(),
            Expr::Bind { value, body, .. } => vec![*value, *body],
            Expr::OptMap { operand, body, .. } => vec![*operand, *body],
        }
    }
}

impl Ast {
    /// Adds an expression; returns `None` if it is nested too deep.
    pub(super) fn add(&mut self, expr: Expr, at: u32) -> Option<Id> {
        let below = expr.children().into_iter().map(|id| self.node(id).depth).max().unwrap_or(0);
        // Expressions that bind names need more stack than others.
        let own = if matches!(expr, Expr::Loop(_) | Expr::Bind { .. } | Expr::OptMap { .. }) { 3 } else { 1 };
        let depth = below.saturating_add(own);
        if depth > MAX_DEPTH {
            return None;
        }
        let id = Id::try_from(self.nodes.len()).ok()?;
        self.nodes.push(Node { expr, at, depth });
        Some(id)
    }

    /// Returns the node of an id of this tree.
    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub(super) fn expr(&self, id: Id) -> &Expr {
        &self.node(id).expr
    }

    /// Returns the qualified name `a.b.c` if the expression is one.
    pub(super) fn dotted(&self, id: Id) -> Option<String> {
        match self.expr(id) {
            Expr::Ident(name) => Some(name.clone()),
            Expr::Select { operand, field, optional: false } => {
                Some(format!("{}.{field}", self.dotted(*operand)?))
            }
            _ => None,
        }
    }
}
