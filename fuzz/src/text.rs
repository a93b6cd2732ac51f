//! Small languages in strings: selectors, quantities, image names.

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
        // What it prints means the same.
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
        // Its canonical form is the same amount, and canonical.
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
