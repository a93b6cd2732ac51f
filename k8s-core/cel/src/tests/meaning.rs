//! Expressions and their values by topic, according to the CEL specification.

use super::told;

fn check(table: &[(&str, &str)]) {
    let wrong: Vec<String> = table
        .iter()
        .filter_map(|(text, want)| {
            let have = told(text);
            (have != *want).then(|| format!("{text}\n  is   {have}\n  want {want}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn arithmetic() {
    check(&[
        ("1 + 2 * 3", "7"),
        ("-7 / 2", "-3"),
        ("-7 % 2", "-1"),
        ("7u / 2u", "3u"),
        ("1.0 / 0.0", "inf"),
        ("1 / 0", "error: division by zero"),
        ("1 % 0", "error: modulus by zero"),
        ("9223372036854775807 + 1", "error: integer overflow"),
        ("-9223372036854775808 - 1", "error: integer overflow"),
        ("-9223372036854775808 / -1", "error: integer overflow"),
        ("-(-9223372036854775808)", "error: integer overflow"),
        ("9223372036854775807 * 2", "error: integer overflow"),
        ("0u - 1u", "error: unsigned integer overflow"),
        ("18446744073709551615u + 1u", "error: unsigned integer overflow"),
        ("1 + 1u", "found no matching overload for '_+_' applied to '(int, uint)'"),
        ("1 + 1.0", "found no matching overload for '_+_' applied to '(int, double)'"),
        ("dyn(1) + 1.0", "error: no such overload"),
        ("0xff", "255"),
        ("'a' + 'b'", "\"ab\""),
        ("b'a' + b'b'", "b\"ab\""),
        ("[1] + [2, 3]", "[1, 2, 3]"),
    ]);
}

#[test]
fn comparisons_and_equality() {
    check(&[
        ("1 == 1", "true"),
        ("1 == 1.0", "found no matching overload for '_==_' applied to '(int, double)'"),
        ("dyn(1) == 1.0", "true"),
        ("dyn(1) == 1u", "true"),
        ("dyn(1) == 'a'", "false"),
        ("dyn(1) != 'a'", "true"),
        ("1 < 1.5", "true"),
        ("2u > 1", "true"),
        ("1 <= 1u", "true"),
        ("-1 < 0u", "true"),
        ("9223372036854775807 < 9223372036854775808.0", "true"),
        ("'a' < 'b'", "true"),
        ("b'a' < b'b'", "true"),
        ("false < true", "true"),
        ("0.0 == -0.0", "true"),
        ("double('NaN') == double('NaN')", "false"),
        ("[1, 2] == [1, 2]", "true"),
        ("[1, 2] == [2, 1]", "false"),
        ("{'a': 1} == {'a': 1}", "true"),
        ("dyn([1]) == [1.0]", "true"),
        ("dyn({1: 'a'}) == {1u: 'a'}", "true"),
        ("null == null", "true"),
        ("1 < 'a'", "found no matching overload for '_<_' applied to '(int, string)'"),
        ("dyn(1) < 'a'", "error: no such overload"),
        ("self == self", "true"),
        ("x.l == [dyn(1), 'a', null]", "true"),
        ("x.l == [dyn(1), dyn('a'), dyn(null)]", "true"),
    ]);
}

#[test]
fn logic_absorbs_errors() {
    check(&[
        ("true && false", "false"),
        ("1 / 0 == 1 && false", "false"),
        ("false && 1 / 0 == 1", "false"),
        ("1 / 0 == 1 || true", "true"),
        ("1 / 0 == 1 || false", "error: division by zero"),
        ("true && 1 / 0 == 1", "error: division by zero"),
        ("1 / 0 == 1 || true && 2 / 0 == 1", "error: division by zero"),
        ("[1, 0].exists(n, 1 / n == 1)", "true"),
        ("[0, 1].exists(n, 1 / n == 1)", "true"),
        ("[0, 2].exists(n, 1 / n == 1)", "error: division by zero"),
        ("[0, 2].all(n, 1 / n == 1)", "false"),
        ("[0, 1].all(n, 1 / n == 1)", "error: division by zero"),
        ("[0, 1].exists_one(n, 1 / n == 1)", "error: division by zero"),
        ("true ? 1 : 1 / 0", "1"),
        ("dyn('a') && true", "error: no such overload"),
        ("dyn('a') || true", "true"),
        ("'a' && true", "found no matching overload for '_&&_' applied to '(string, bool)'"),
        ("!true", "false"),
        ("true ? 1 : 'a'", "found no matching overload for '_?_:_' applied to '(bool, int, string)'"),
    ]);
}

#[test]
fn fields_and_presence() {
    check(&[
        ("self.name", "\"web-1\""),
        ("self.d", "2.0"),
        ("self.foo", "undefined field 'foo'"),
        ("has(self.foo)", "undefined field 'foo'"),
        ("has(self.absent)", "false"),
        ("has(self.name)", "true"),
        ("has(self.maybe)", "true"),
        ("self.absent.x", "error: no such key: absent"),
        ("self.name.x", "type 'string' does not support field selection"),
        ("self.map.k", "\"v\""),
        ("self.map['k2']", "\"w\""),
        ("self.map.z", "error: no such key: z"),
        ("self.map['z']", "error: no such key: z"),
        ("'k' in self.map", "true"),
        ("has(self.map.z)", "false"),
        ("self.list[0]", "3"),
        ("self.list[3]", "error: index out of bounds: 3"),
        ("self.list[-1]", "error: index out of bounds: -1"),
        ("2 in self.list", "true"),
        ("self.open.x.y[0]", "1"),
        ("has(self.open.z)", "false"),
        ("self.__namespace__", "\"ns\""),
        ("self.a__dash__b", "\"dash\""),
        ("self.a__slash__b", "\"slash\""),
        ("self.a__dot__b", "\"dot\""),
        ("self.a__underscores__b", "\"under\""),
        ("self.any", "\"50%\""),
        ("type(self.any) == string ? self.any.endsWith('%') : self.any > 5", "true"),
        ("self.when < timestamp('2027-01-01T00:00:00Z')", "true"),
        ("self.how == duration('1m30s')", "true"),
        ("self.raw", "b\"hi\""),
        ("string(self.raw)", "\"hi\""),
        ("x.o.p", "true"),
        ("x.l[1]", "\"a\""),
        ("x.nothing", "error: no such key: nothing"),
        ("y", "undeclared reference to 'y' (in container '')"),
        (
            "y.z + w",
            "undeclared reference to 'y' (in container ''); undeclared reference to 'w' (in container '')",
        ),
        ("Foo{a: 1}", "undeclared reference to 'Foo' (in container '')"),
    ]);
}

#[test]
fn loops() {
    check(&[
        ("[1, 2, 3].all(i, i > 0)", "true"),
        ("[].all(i, false)", "true"),
        ("[].exists(i, true)", "false"),
        ("[1, 2, 2].exists_one(i, i == 2)", "false"),
        ("[1, 2, 3].existsOne(i, i == 2)", "true"),
        ("[1, 2, 3].map(i, i * 2)", "[2, 4, 6]"),
        ("[1, 2, 3].map(i, i > 1, i * 2)", "[4, 6]"),
        ("[1, 2, 3].filter(i, i > 1)", "[2, 3]"),
        ("{'a': 1, 'b': 2}.map(k, k)", "[\"a\", \"b\"]"),
        ("{'a': 1, 'b': 2}.all(k, k < 'c')", "true"),
        ("{'a': 1, 'b': 2}.filter(k, k == 'b')", "[\"b\"]"),
        ("[1, 2].map(i, [3, 4].map(j, i * j))", "[[3, 4], [6, 8]]"),
        ("[1, 2].map(i, [i].map(i, i + 1))", "[[2], [3]]"),
        ("[5, 6].all(i, v, i < v)", "true"),
        ("[5, 6].exists(i, v, i == 1 && v == 6)", "true"),
        ("{'a': 1}.existsOne(k, v, v == 1)", "true"),
        ("[5, 6].transformList(i, v, i * v)", "[0, 6]"),
        ("{'a': 1, 'b': 2}.transformList(k, v, v > 1, k)", "[\"b\"]"),
        ("{'a': 1, 'b': 2}.transformMap(k, v, v * 2)", "{\"a\": 2, \"b\": 4}"),
        ("{'a': 1, 'b': 2}.transformMap(k, v, k == 'a', v * 2)", "{\"a\": 2}"),
        ("{'a': 'b'}.transformMapEntry(k, v, {v: k})", "{\"b\": \"a\"}"),
        ("['a', 'a'].transformMapEntry(i, v, {v: i})", "error: Failed with repeated key"),
        ("self.items.all(i, i.name.startsWith('a') && i.port in [80, 443])", "true"),
        ("self.items.map(i, i.port).sum()", "523"),
        ("self.map.all(k, v, v != '')", "true"),
        (
            "1.all(i, true)",
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        (
            "self.all(i, true)",
            "expression of type 'object' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("[1].all(i, i)", "expected type 'bool' but found 'int'"),
        ("[1].all(i, j)", "undeclared reference to 'j' (in container '')"),
        ("cel.bind(v, self.n + 1, v * v)", "64"),
        ("cel.bind(v, 1 / 0, true)", "true"),
        ("cel.bind(v, 1 / 0, v)", "error: division by zero"),
    ]);
}

#[test]
fn optional_values() {
    check(&[
        ("optional.of(1)", "some(1)"),
        ("optional.none()", "none"),
        ("optional.ofNonZeroValue('')", "none"),
        ("optional.of(1).hasValue()", "true"),
        ("optional.of(1).value()", "1"),
        ("optional.none().value()", "error: optional.none() dereference"),
        ("optional.none().orValue(5)", "5"),
        ("optional.of(1).orValue(1 / 0)", "1"),
        ("optional.none().or(optional.of(2))", "some(2)"),
        ("optional.of(2).optMap(v, v + 1)", "some(3)"),
        ("optional.none().optMap(v, 1 / 0)", "none"),
        ("optional.of(2).optFlatMap(v, optional.none())", "none"),
        ("self.?absent.x", "none"),
        ("self.?absent.?x.orValue(3)", "3"),
        ("self.?name", "some(\"web-1\")"),
        ("self.?name.orValue('')", "\"web-1\""),
        ("self.list[?9]", "none"),
        ("self.list[?0]", "some(3)"),
        ("self.map[?'k'].hasValue()", "true"),
        ("self.?map['k']", "some(\"v\")"),
        ("[1, ?optional.none(), ?optional.of(3)]", "[1, 3]"),
        ("{?'a': optional.none(), ?'b': optional.of(2)}", "{\"b\": 2}"),
        ("has(self.?absent.x)", "false"),
        ("self.?foo", "undefined field 'foo'"),
    ]);
}

#[test]
fn conversions() {
    check(&[
        ("int('12')", "12"),
        ("int(2.9)", "2"),
        ("int(-2.9)", "-2"),
        ("int(1e99)", "error: integer overflow"),
        ("int(18446744073709551615u)", "error: integer overflow"),
        ("int('a')", "error: strconv.ParseInt: parsing \"a\": invalid syntax"),
        ("uint(-1)", "error: unsigned integer overflow"),
        ("uint('3')", "3u"),
        ("double(3)", "3.0"),
        ("double('1.5')", "1.5"),
        ("string(1.5)", "\"1.5\""),
        ("string(2.0)", "\"2\""),
        ("string(1e6)", "\"1e+06\""),
        ("string(1.5e-7)", "\"1.5e-07\""),
        ("string(true)", "\"true\""),
        ("string(b'hi')", "\"hi\""),
        (r"string(b'\xff')", "error: invalid UTF-8 in bytes, cannot convert to string"),
        ("bytes('é').size()", "2"),
        ("'é'.size()", "1"),
        ("size('é')", "1"),
        ("size([1, 2])", "2"),
        ("size({'a': 1})", "1"),
        ("bool('true')", "true"),
        ("bool('yes')", "error: type conversion error from 'yes' to 'bool'"),
        ("type(1) == int", "true"),
        ("type('a') == type('b')", "true"),
        ("type(type(1)) == type", "true"),
        ("type(1u)", "uint"),
        ("type(null) == null_type", "true"),
        ("type(self.when) == google.protobuf.Timestamp", "true"),
        ("type(ip('1.2.3.4')) == net.IP", "true"),
        ("size(1)", "found no matching overload for 'size' applied to '(int)'"),
        ("foo(1)", "undeclared reference to 'foo' (in container '')"),
        ("'a'.foo()", "undeclared reference to 'foo' (in container '')"),
        ("'a'.startsWith(1)", "found no matching overload for 'startsWith' applied to 'string.(int)'"),
        ("[1, 'a']", "expected type 'int' but found 'string'"),
        ("{'a': 1, 'a': 2}", "error: Failed with repeated key"),
    ]);
}

#[test]
fn time() {
    check(&[
        ("timestamp('2026-01-02T03:04:05Z').getFullYear()", "2026"),
        ("self.when.getMonth()", "0"),
        ("self.when.getDate()", "2"),
        ("self.when.getDayOfMonth()", "1"),
        ("self.when.getDayOfWeek()", "5"),
        ("self.when.getDayOfYear()", "1"),
        ("self.when.getHours('America/New_York')", "22"),
        ("self.when.getHours('+02:00')", "5"),
        ("self.when.getMinutes('-00:30')", "34"),
        ("self.when.getHours('Nowhere/At_All')", "error: unknown time zone Nowhere/At_All"),
        ("self.when + duration('24h')", "2026-01-03T03:04:05Z"),
        ("self.when - self.when", "0s"),
        ("string(self.when - duration('1h'))", "\"2026-01-02T02:04:05Z\""),
        ("int(timestamp(10))", "10"),
        ("duration('1h30m').getMinutes()", "90"),
        ("duration('1.5s').getMilliseconds()", "1500"),
        ("string(duration('90m'))", "\"5400s\""),
        ("duration('1d')", "invalid duration argument"),
        ("duration(self.name)", "error: invalid duration \"web-1\""),
        ("timestamp('x')", "invalid timestamp argument"),
        ("timestamp('9999-12-30T20:00:00Z') + duration('24h')", "error: timestamp overflow"),
        ("duration('2000000h') + duration('2000000h')", "error: duration overflow"),
    ]);
}

#[test]
fn texts() {
    check(&[
        ("'tacocat'.charAt(3)", "\"o\""),
        ("'ab'.charAt(2)", "\"\""),
        ("'ab'.charAt(3)", "error: index out of range: 3"),
        ("'hello mellow'.indexOf('ello')", "1"),
        ("'hello mellow'.indexOf('ello', 2)", "7"),
        ("'hello mellow'.indexOf('')", "0"),
        ("'hello mellow'.lastIndexOf('ello')", "7"),
        ("'hello mellow'.lastIndexOf('ello', 6)", "1"),
        ("'éa'.indexOf('a')", "1"),
        ("'a'.indexOf('b', 5)", "error: index out of range: 5"),
        ("['a', 'b'].join('-')", "\"a-b\""),
        ("['a', 'b'].join()", "\"ab\""),
        ("'TacoCat'.lowerAscii()", "\"tacocat\""),
        ("'é'.upperAscii()", "\"é\""),
        ("'hello hello'.replace('he', 'we')", "\"wello wello\""),
        ("'hello hello'.replace('he', 'we', 1)", "\"wello hello\""),
        ("'ab'.replace('', '-')", "\"-a-b-\""),
        ("'a b c'.split(' ')", "[\"a\", \"b\", \"c\"]"),
        ("'a b c'.split(' ', 2)", "[\"a\", \"b c\"]"),
        ("'a b'.split(' ', 0)", "[]"),
        ("'abc'.split('')", "[\"a\", \"b\", \"c\"]"),
        ("'tacocat'.substring(4)", "\"cat\""),
        ("'tacocat'.substring(0, 4)", "\"taco\""),
        ("'tacocat'.substring(3, 2)", "error: invalid substring range. start: 3, end: 2"),
        ("'  a '.trim()", "\"a\""),
        ("'abc'.reverse()", "\"cba\""),
        (r#"strings.quote("a\"\n")"#, r#""\"a\\\"\\n\"""#),
        ("'abc'.contains('b')", "true"),
        ("'abc'.startsWith('ab') && 'abc'.endsWith('bc')", "true"),
        ("'%s is %d'.format(['a', 1])", "\"a is 1\""),
        ("'%.2f %e'.format([1.234, 1500.0])", "\"1.23 1.500000e+03\""),
        ("'%x %X %b %o'.format([255, 'hi', 5, 8])", "\"ff 6869 101 10\""),
        ("'%s %s'.format([[1, 2], {'a': true}])", "\"[1, 2] {a: true}\""),
        ("'100%%'.format([])", "\"100%\""),
        ("'%s'.format([])", "error: index 0 out of range"),
        ("'%q'.format([1])", "error: unrecognized formatting clause \"q\""),
        ("'%.999f'.format([1.0])", "error: precision 999 exceeds maximum allowed precision 100"),
        ("'abc'.matches('^a.c$')", "true"),
        ("matches('abc', 'b')", "true"),
        ("'a'.matches('(')", "invalid matches argument"),
        ("'abc 123'.find('[0-9]+')", "\"123\""),
        ("'1 2 3'.findAll('[0-9]')", "[\"1\", \"2\", \"3\"]"),
        ("'1 2 3'.findAll('[0-9]', 2)", "[\"1\", \"2\"]"),
    ]);
}

#[test]
fn lists_and_sets() {
    check(&[
        ("self.list.sum()", "6"),
        ("self.list.min()", "1"),
        ("self.list.max()", "3"),
        ("[].sum()", "0"),
        ("[].min()", "error: min called on empty list"),
        ("self.list.isSorted()", "false"),
        ("['a', 'b'].isSorted()", "true"),
        ("self.list.indexOf(2)", "2"),
        ("[1, 2, 1].lastIndexOf(1)", "2"),
        ("[1].indexOf(5)", "-1"),
        ("sets.contains([1, 2, 3], [2, 3])", "true"),
        ("sets.equivalent([1, 2], [2, 1, 1])", "true"),
        ("sets.intersects([1], [2])", "false"),
        ("math.greatest(1, 5, 3)", "5"),
        ("math.least([3, 1, 2])", "1"),
        ("math.greatest(1, 2.5)", "2.5"),
        ("math.abs(-3)", "3"),
        ("lists.range(3)", "[0, 1, 2]"),
        ("[1, 2, 3].slice(1, 3)", "[2, 3]"),
        ("[1, 1, 2].distinct()", "[1, 2]"),
    ]);
}

#[test]
fn kubernetes_types() {
    check(&[
        ("url('https://u@example.com:80/a%20b?k=v&k=w').getHost()", "\"example.com:80\""),
        ("url('https://example.com:80/').getHostname()", "\"example.com\""),
        ("url('https://[::1]:80/').getHostname()", "\"::1\""),
        ("url('https://example.com:80/').getPort()", "\"80\""),
        ("url('https://example.com/a%20b').getEscapedPath()", "\"/a%20b\""),
        ("url('https://e/?k=v&k=w').getQuery()", "{\"k\": [\"v\", \"w\"]}"),
        ("url('/path').getScheme()", "\"\""),
        ("isURL('https://a')", "true"),
        ("isURL('../x')", "false"),
        ("isURL('a b')", "false"),
        ("quantity('1.5Gi').isGreaterThan(quantity('1Gi'))", "true"),
        ("quantity('50k').add(20) == quantity('50020')", "true"),
        ("quantity('50k').sub(quantity('1k')).asInteger()", "49000"),
        ("quantity('100m').isInteger()", "false"),
        ("quantity('100m').asApproximateFloat()", "0.1"),
        ("quantity('-1').sign()", "-1"),
        ("quantity('1').compareTo(quantity('2'))", "-1"),
        ("isQuantity('1.3Gx')", "false"),
        ("ip('192.168.0.1').family()", "4"),
        ("ip('::1').isLoopback()", "true"),
        ("isIP('::ffff:1.2.3.4')", "false"),
        ("ip.isCanonical('2001:DB8::1')", "false"),
        ("string(ip('2001:DB8::1'))", "\"2001:db8::1\""),
        ("ip('10.0.0.1').isGlobalUnicast()", "true"),
        ("ip('fe80::1').isLinkLocalUnicast()", "true"),
        ("ip('224.0.0.1').isLinkLocalMulticast()", "true"),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3')", "true"),
        ("cidr('10.0.0.0/8').containsIP(ip('11.0.0.1'))", "false"),
        ("cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')", "true"),
        ("cidr('10.0.0.0/16').containsCIDR('10.0.0.0/8')", "false"),
        ("string(cidr('10.1.2.3/8').masked())", "\"10.0.0.0/8\""),
        ("cidr('10.1.2.3/8').ip() == ip('10.1.2.3')", "true"),
        ("cidr('10.1.2.3/8').prefixLength()", "8"),
        ("isCIDR('10.0.0.0/33')", "false"),
        ("semver('1.2.3').isLessThan(semver('1.10.0'))", "true"),
        ("semver('1.0.0-alpha.1').compareTo(semver('1.0.0'))", "-1"),
        ("semver('v1.02', true).minor()", "2"),
        ("isSemver('v1.0')", "false"),
        ("isSemver('1.0.0+build.5')", "true"),
        ("format.dns1123Label().validate('my-label').hasValue()", "false"),
        ("format.dns1123Label().validate('-').value().size()", "1"),
        ("format.dns1123LabelPrefix().validate('my-').hasValue()", "false"),
        ("format.named('dns1123Subdomain').value().validate('a.b').hasValue()", "false"),
        ("format.named('none').hasValue()", "false"),
        ("format.uuid().validate('123e4567-e89b-12d3-a456-426614174000').hasValue()", "false"),
        ("format.qualifiedName().validate('a b').value()[0].startsWith('name part')", "true"),
    ]);
}
