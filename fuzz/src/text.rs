//! Small string grammars: selectors, quantities, image names.

use k8s_cel::{Activation, Decl, Env, EvalError, Meter};
use k8s_core::meta::{FieldSelector, LabelSelector, Quantity};
use k8s_runtime::images::Reference;

use crate::Target;

pub(crate) const LABEL_SELECTOR: Target = Target {
    name: "label_selector",
    seeds: &[b"a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2", b"a in (,b)", b"x/y==z"],
    run: |data| {
        let Ok(selector) = String::from_utf8_lossy(data).parse::<LabelSelector>() else { return };
        let _ = selector.matches_with(|_| None);
        let _ = selector.matches_with(|_| Some("b"));
        // Round trip of the printed form.
        let again = selector.to_string().parse::<LabelSelector>();
        assert_eq!(again.map(|s| s.to_string()), Ok(selector.to_string()));
    },
};

pub(crate) const FIELD_SELECTOR: Target = Target {
    name: "field_selector",
    seeds: &[b"metadata.name=a,status.phase!=Running,spec.nodeName==n", b"a=b\\,c"],
    run: |data| {
        if let Ok(selector) = String::from_utf8_lossy(data).parse::<FieldSelector>() {
            let _ = selector.matches_with(|path| path.to_owned());
            let _ = selector.required("metadata.name");
        }
    },
};

pub(crate) const QUANTITY: Target = Target {
    name: "quantity",
    seeds: &[b"100m", b"1.5Gi", b"-0.000000001", b"12E", b"1e3", b"9223372036854775807", b"1Ki"],
    run: |data| {
        let Ok(quantity) = String::from_utf8_lossy(data).parse::<Quantity>() else { return };
        let _ = (quantity.units(), quantity.milli(), quantity.is_negative());
        // The canonical form is the same amount, and its own canonical form.
        let text = quantity.to_string();
        let again = text.parse::<Quantity>();
        assert!(again.as_ref().is_ok_and(|q| q.to_string() == text), "{text:?} became {again:?}");
    },
};

pub(crate) const IMAGE_REFERENCE: Target = Target {
    name: "image_reference",
    seeds: &[
        b"redis",
        b"localhost:5000/a/b:c",
        b"docker.io/library/x@sha256:0000000000000000000000000000000000000000000000000000000000000000",
    ],
    run: |data| {
        let Ok(reference) = Reference::parse(&String::from_utf8_lossy(data)) else { return };
        let name = reference.name();
        assert!(!name.is_empty() && !name.contains(".."), "{name:?}");
        let _ = reference.version();
    },
};

pub(crate) const CEL: Target = Target {
    name: "cel",
    seeds: &[
        b"self.l.all(x, x > 0 && self.l.exists(y, y == x)) || has(self.s) && self.s.matches('^(a|b{1,9})+$')",
        b"self.s.split('').map(c, c + self.s).join(self.s).replace('', self.s).size() > 1u ? 0x1f : -1",
        b"'%s %d %.3f %x'.format([self.?o.?x.orValue({'a': [1, b'\\xff']}), 1, 2.5, 'hi']) in [r'a', \"\"\"b\"\"\"]",
        b"cel.bind(v, self.l + self.l, v.transformMap(i, x, i > 1, x * x)[2]) == duration('1h').getHours() // end",
        b"quantity('1Gi').add(quantity('1')).isGreaterThan(quantity('2')) && cidr('10.0.0.0/8').containsIP(ip('10.1.1.1'))",
    ],
    run: |data| {
        let schema = serde_json::json!({"type": "object", "properties": {
            "l": {"type": "array", "items": {"type": "integer"}}, "s": {"type": "string"}, "o": {"x-kubernetes-preserve-unknown-fields": true}}});
        let object = serde_json::json!({"l": [1, 2, 3], "s": "abc", "o": {"x": {"a": [1, 2.5, null]}}});
        let text = String::from_utf8_lossy(data);
        if let Ok(printed) = k8s_cel::format(&text) {
            // Round trip of the printed form.
            assert_eq!(k8s_cel::format(&printed), Ok(printed));
        }
        let env = Env::new().variable("self", Decl::of_schema(&schema));
        let Ok(program) = env.compile(&text) else { return };
        let activation = Activation::new().json("self", &object);
        let mut meter = Meter::new(100_000);
        let result = program.evaluate(&activation, &mut meter);
        // With a smaller budget the result is the same, or the budget is exceeded.
        let again = program.evaluate(&activation, &mut Meter::new(meter.cost() / 2));
        assert!(matches!(again, Err(EvalError::Cost)) || again.is_ok() == result.is_ok());
    },
};
