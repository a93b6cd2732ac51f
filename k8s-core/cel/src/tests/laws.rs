//! Properties of every expression: printing and parsing are inverse, nothing panics or runs without bound,
//! costs only grow.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::json;

use crate::{
    Activation, Decl, Env, EvalError, Meter,
    ast::{Ast, Expr, Id, Literal, Loop, LoopKind, MAX_DEPTH},
    parser, print,
};

/// Builds a tree from a sequence of choices.
fn build(ast: &mut Ast, choices: &mut impl Iterator<Item = u8>, depth: u8) -> Id {
    let mut next = || choices.next().unwrap_or(0);
    let choice = if depth == 0 { next() % 7 } else { next() % 20 };
    const NAMES: [&str; 4] = ["a", "self", "x", "list"];
    let name = NAMES[next() as usize % 4].to_owned();
    let mut below = |ast: &mut Ast| build(ast, choices, depth - 1);
    let call = |function: &str, args: Vec<Id>| Expr::Call { function: function.into(), target: None, args };
    let expr = match choice {
        0 => Expr::Ident(name),
        1 => Expr::Literal(Literal::Int(i64::from(name.len() as u8) - 2)),
        2 => Expr::Literal(Literal::String("a\"\\\n\u{1}é".into())),
        3 => Expr::Literal(Literal::Double(-1.5)),
        4 => Expr::Literal(Literal::Bytes(vec![0, 255, b'a'])),
        5 => Expr::Literal(Literal::Uint(u64::MAX)),
        6 => Expr::Literal(Literal::Null),
        7 => Expr::Select { operand: below(ast), field: name, optional: false },
        8 => Expr::Select { operand: below(ast), field: name, optional: true },
        9 => Expr::And(vec![below(ast), below(ast), below(ast)]),
        10 => Expr::Or(vec![below(ast), below(ast)]),
        11 => Expr::Conditional(below(ast), below(ast), below(ast)),
        12 => call("_-_", vec![below(ast), below(ast)]),
        13 => call("_*_", vec![below(ast), below(ast)]),
        14 => call("@in", vec![below(ast), below(ast)]),
        15 => call("!_", vec![below(ast)]),
        16 => call("-_", vec![below(ast)]),
        17 => call("_[_]", vec![below(ast), below(ast)]),
        18 => Expr::List(vec![(below(ast), false), (below(ast), true)]),
        _ => Expr::Loop(Loop {
            kind: LoopKind::Map,
            name: "map",
            range: below(ast),
            variable: name,
            second: None,
            filter: Some(below(ast)),
            body: below(ast),
        }),
    };
    ast.add(expr, 0).unwrap()
}

/// Returns a tree without positions, for comparison.
fn shape(ast: &Ast, id: Id) -> String {
    let below: Vec<String> = ast.expr(id).children().into_iter().map(|child| shape(ast, child)).collect();
    let own = match ast.expr(id) {
        Expr::Literal(literal) => format!("{literal:?}"),
        Expr::Ident(name) => name.clone(),
        Expr::Select { field, optional, .. } => format!(".{optional}{field}"),
        Expr::Call { function, target, .. } => format!("{function}{}", target.is_some()),
        Expr::List(elements) => format!("{:?}", elements.iter().map(|e| e.1).collect::<Vec<_>>()),
        Expr::Loop(one) => format!("{}{}", one.name, one.variable),
        other => format!("{:?}", std::mem::discriminant(other)),
    };
    format!("{own}({})", below.join(","))
}

/// Tokens that form expressions when concatenated.
const WORDS: [&str; 64] = [
    "self",
    "x",
    ".n",
    ".list",
    ".name",
    ".names",
    ".map",
    ".items",
    ".foo",
    ".?name",
    "[0]",
    "[?1]",
    "['k']",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "?",
    "&&",
    "||",
    "!",
    "-",
    "+",
    "*",
    "/",
    "%",
    "==",
    "!=",
    "<",
    ">=",
    "in",
    "1",
    "2u",
    "1.5",
    "'a'",
    "b'b'",
    "true",
    "null",
    ".all(v, ",
    ".map(v, ",
    ".filter(v, ",
    ".exists(v, ",
    "v",
    "has(",
    ".size()",
    ".matches('(a*)*b')",
    ".replace('', self.name)",
    ".split('')",
    ".join(self.name)",
    "'%s'.format([",
    "string(",
    "cel.bind(v, ",
    "duration('1h')",
    "timestamp(1)",
    "quantity('1')",
    "optional.of(",
    ".orValue(",
    ".transformMap(k, v, ",
    ".sum()",
    "type(",
];

fn run(text: &str, limit: u64) -> Option<(Result<(), EvalError>, u64, Duration)> {
    let schema = super::schema();
    let env = Env::new().variable("self", Decl::of_schema(&schema)).variable("x", Decl::any());
    let program = env.compile(text).ok()?;
    let (object, x) = (super::object(), json!([1, "a", {"b": [null, 2.5]}]));
    let mut meter = Meter::new(limit);
    let begun = Instant::now();
    let result = program.evaluate(&Activation::new().json("self", &object).json("x", &x), &mut meter);
    if let Ok(value) = &result {
        let _ = super::show(value);
    }
    Some((result.map(|_| ()), meter.cost(), begun.elapsed()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn printing_and_parsing_undo_each_other(choices in prop::collection::vec(any::<u8>(), 1..60)) {
        let mut ast = Ast::default();
        ast.root = build(&mut ast, &mut choices.into_iter(), 4);
        let text = print::print(&ast);
        let again = parser::parse(&text).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
        prop_assert_eq!(shape(&ast, ast.root), shape(&again, again.root), "{}", text);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
        let _ = Env::new().compile(&text);
    }

    #[test]
    fn words_in_any_order_are_harmless(words in prop::collection::vec(0..WORDS.len(), 1..24)) {
        let text: String = words.iter().map(|i| format!("{} ", WORDS[*i])).collect();
        if let Some((_, cost, time)) = run(&text, 100_000) {
            prop_assert!(time < Duration::from_secs(5), "{} took {:?}", text, time);
            prop_assert!(cost < 10_000_000);
        }
    }

    #[test]
    fn a_higher_limit_changes_nothing_but_running_out(limit in 0u64..3000) {
        let text = "self.items.all(i, self.names.exists(n, n.size() > 1 && i.name.startsWith('a'))) && self.list.map(l, l * 2).sum() == 12";
        let (all, whole, _) = run(text, 1_000_000).unwrap();
        let (some, part, _) = run(text, limit).unwrap();
        prop_assert_eq!(all, Ok(()));
        if limit >= whole {
            prop_assert_eq!((some, part), (Ok(()), whole));
        } else {
            prop_assert_eq!(some, Err(EvalError::Cost));
            prop_assert!(part <= whole);
        }
    }
}

/// Expressions that would run for hours or exhaust memory.
#[test]
fn what_would_run_for_hours_is_stopped() {
    let doubling = |inner: &str, step: &str| {
        (0..40).fold(inner.to_owned(), |inner, i| {
            format!("cel.bind(v{i}, {}, {inner})", step.replace('P', &(i + 1).to_string()))
        })
    };
    let nested =
        (0..12).fold("true".to_owned(), |inner, i| format!("self.list.map(a{i}, {inner}).size() > 0"));
    let deep = (0..12).fold("true".to_owned(), |inner, i| format!("lists.range(1000).all(a{i}, {inner})"));
    for text in [
        doubling("v0.size()", "vP + vP").replace("v40 + v40", "'abcdefgh' + 'abcdefgh'"),
        doubling("v0.size()", "vP + vP").replace("v40 + v40", "[1, 2]"),
        doubling("v0 == v0", "[vP, vP]").replace("[v40, v40]", "[1]").replace("v0 == v0", "dyn(v0) == dyn(v0)"),
        doubling("v0.size()", "vP.replace('', vP)").replace("v40.replace('', v40)", "'abcd'"),
        doubling("v0.size()", "[vP, vP, vP].join(vP)").replace("[v40, v40, v40].join(v40)", "'abcd'"),
        doubling("v0.size()", "'%s%s'.format([vP, vP])").replace("'%s%s'.format([v40, v40])", "'abcd'"),
        doubling("'%s'.format([v0])", "[vP, vP]").replace("[v40, v40]", "[1]"),
        doubling("v0.split('').size()", "vP + vP").replace("v40 + v40", "'ab'"),
        deep,
        "lists.range(1000000000).size() > 0".into(),
        "lists.range(3000).all(a, lists.range(3000).all(b, string(a + b).matches('([ab]{1,50}){1,20}' + string(b)) || true))".into(),
    ] {
        let begun = Instant::now();
        let (result, ..) = run(&text, 200_000).unwrap_or_else(|| panic!("{text}: does not compile"));
        assert_eq!(result, Err(EvalError::Cost), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{text} took {:?}", begun.elapsed());
    }
    // Loops over existing data cost their iterations.
    assert_eq!(run(&nested, 1_000_000).unwrap().0, Err(EvalError::Cost));
}

#[test]
fn the_deepest_expressions_fit_a_small_stack() {
    let work = || {
        let most = usize::from(MAX_DEPTH) - 4;
        for text in [
            format!("{}1{}", "(".repeat(most), ")".repeat(most)),
            format!("1{}", " + 1".repeat(most)),
            format!("{}1{}", "[".repeat(most), "]".repeat(most)),
            format!("x{}", ".a".repeat(most)),
            format!("{}1{}", "true ? (".repeat(most / 2), ") : 2".repeat(most / 2)),
            format!("{}true{}", "[1].all(i, ".repeat(most / 3), ")".repeat(most / 3)),
            format!("{}1{}", "{1: ".repeat(most), "}".repeat(most)),
            format!("{}1{}", "dyn(".repeat(most), ")".repeat(most)),
            format!("{}1{}", "-(".repeat(most), ")".repeat(most)),
            format!("{}true{}", "cel.bind(i, 1, ".repeat(most / 3), ")".repeat(most / 3)),
        ] {
            let found = run(&text, 1_000_000);
            assert!(found.is_some(), "{}", text.get(..60).unwrap_or(&text));
        }
    };
    let thread = std::thread::Builder::new().stack_size(1536 << 10).spawn(work).unwrap();
    thread.join().unwrap();
}

#[test]
fn estimates_bound_what_is_spent() {
    let schema = super::schema();
    let object = super::object();
    let env = Env::new().variable("self", Decl::of_schema(&schema));
    for text in [
        "self.n > 1 && self.name.startsWith('web')",
        "self.items.all(i, i.port in [80, 443] && i.name.size() > 1)",
        "self.names.exists(n, n == 'ccc') || self.names.filter(n, n.contains('b')).size() == 1",
        "self.names.map(n, n + self.name).join(',').size() < 100",
        "self.map.all(k, v, k.matches('^k') && v.upperAscii() != v)",
        "self.name.split('-').map(p, p.replace('w', 'v')).size() == 2",
        "cel.bind(s, self.list.sum(), s > 3 ? s : -s) == 6",
        "has(self.absent) ? self.absent.x > 1 : self.list.isSorted()",
        "'%s-%d'.format([self.name, self.n]) != '' && string(self.n) == '7'",
    ] {
        let program = env.compile(text).unwrap();
        let mut meter = Meter::new(1_000_000);
        program.evaluate(&Activation::new().json("self", &object), &mut meter).unwrap();
        let estimate = program.estimate();
        assert!(meter.cost() <= estimate.max, "{text}: {} of {estimate:?}", meter.cost());
        assert!(estimate.max < 10_000_000, "{text}: {estimate:?}");
    }
}
