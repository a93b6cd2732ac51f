#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| k8s_fuzz::run("ingress_annotations", data));
