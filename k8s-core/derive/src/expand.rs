//! The generated type and its trait implementations.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{DeriveInput, Error, Result};

use crate::attributes::Attributes;

pub(crate) fn expand(input: &DeriveInput, attributes: &Attributes) -> Result<TokenStream> {
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(&input.generics, "a resource has no type parameters"));
    }
    let (visibility, spec) = (&input.vis, &input.ident);
    let core = attributes.core.as_ref().map_or_else(|| quote!(::k8s_core), |path| quote!(#path));
    let private = quote!(#core::custom::__derive);
    let (serde_path, schemars_path) = (format!("{private}::serde"), format!("{private}::schemars"));
    let (serde_path, schemars_path) = (serde_path.replace(' ', ""), schemars_path.replace(' ', ""));
    let object = format_ident!("{}", attributes.kind, span = spec.span());
    let Attributes { group, version, kind, namespaced, .. } = attributes;
    let (api_version, plural) = (format!("{group}/{version}"), attributes.plural());
    let doc = format!("A {kind} of {api_version}: the whole object.");
    let scope = if *namespaced { quote!(NamespaceResourceScope) } else { quote!(ClusterResourceScope) };

    let (status_field, status_new, status_write, fields) = match &attributes.status {
        Some(status) => (
            quote! {
                /// Observed state, written by the controller.
                #[serde(default, skip_serializing_if = "::core::option::Option::is_none")]
                pub status: ::core::option::Option<#status>,
            },
            quote!(status: ::core::option::Option::None,),
            quote! {
                if let ::core::option::Option::Some(status) = &self.status {
                    object.serialize_field("status", status)?;
                }
            },
            5usize,
        ),
        None => (quote!(), quote!(), quote!(), 4usize),
    };
    let constants = constants(attributes, &core);
    let functions = attributes.functions.iter().map(|(name, function)| {
        let problems = quote!(&mut #core::custom::Problems);
        let value = quote!(&mut #private::serde_json::Value);
        match name.to_string().as_str() {
            "default" => quote!(fn default(&mut self) { #function(self) }),
            "validate" => quote! {
                fn validate(&self, old: ::core::option::Option<&Self>, problems: #problems) { #function(self, old, problems) }
            },
            "validate_status" => quote! {
                fn validate_status(&self, old: &Self, problems: #problems) { #function(self, old, problems) }
            },
            _ => quote!(fn #name(version: &str, object: #value) { #function(version, object) }),
        }
    });

    Ok(quote! {
        #[doc = #doc]
        #[derive(Clone, Debug, #private::serde::Deserialize, #private::schemars::JsonSchema)]
        #[serde(crate = #serde_path)]
        #[schemars(crate = #schemars_path)]
        #visibility struct #object {
            /// Standard object metadata: name, labels, owner references.
            #[serde(default)]
            pub metadata: #core::api::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            /// Desired state, written by users.
            pub spec: #spec,
            #status_field
        }

        impl #object {
            /// Creates an object without status and metadata but the name.
            #[must_use]
            #[allow(dead_code)]
            #visibility fn new(name: &str, spec: #spec) -> Self {
                let metadata = #core::api::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                    name: ::core::option::Option::Some(::std::string::String::from(name)),
                    ..::core::default::Default::default()
                };
                Self { metadata, spec, #status_new }
            }
        }

        impl #private::serde::Serialize for #object {
            fn serialize<S: #private::serde::Serializer>(&self, serializer: S) -> ::core::result::Result<S::Ok, S::Error> {
                use #private::serde::ser::SerializeStruct as _;
                let mut object = serializer.serialize_struct(#kind, #fields)?;
                object.serialize_field("apiVersion", #api_version)?;
                object.serialize_field("kind", #kind)?;
                object.serialize_field("metadata", &self.metadata)?;
                object.serialize_field("spec", &self.spec)?;
                #status_write
                object.end()
            }
        }

        impl #core::api::Resource for #object {
            const API_VERSION: &'static str = #api_version;
            const GROUP: &'static str = #group;
            const KIND: &'static str = #kind;
            const VERSION: &'static str = #version;
            const URL_PATH_SEGMENT: &'static str = #plural;
            type Scope = #core::api::#scope;
        }

        impl #core::api::Metadata for #object {
            type Ty = #core::api::apimachinery::pkg::apis::meta::v1::ObjectMeta;
            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }
            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }

        impl #core::custom::CustomResource for #object {
            #constants
            #(#functions)*
        }
    })
}

fn constants(attributes: &Attributes, core: &TokenStream) -> TokenStream {
    let Attributes { namespaced, short_names, categories, versions, .. } = attributes;
    let singular = attributes.singular.clone().unwrap_or_else(|| attributes.kind.to_lowercase());
    let status = attributes.status.is_some();
    let columns = attributes.columns.iter().map(|column| {
        let crate::attributes::Column { name, path, kind, wide } = column;
        quote!(#core::custom::PrinterColumn { name: #name, kind: #kind, path: #path, wide: #wide })
    });
    let rules = |all: &[(String, String)]| -> TokenStream {
        all.iter().map(|(rule, message)| quote!(#core::custom::Rule::new(#rule, #message),)).collect()
    };
    let (spec_rules, object_rules) = (rules(&attributes.spec_rules), rules(&attributes.object_rules));
    let scale = attributes.scale.as_ref().map(|scale| {
        let crate::attributes::Scale { spec, status, selector } = scale;
        quote! {
            const SCALE: ::core::option::Option<#core::custom::ScalePaths> =
                ::core::option::Option::Some(#core::custom::ScalePaths { spec: #spec, status: #status, selector: #selector });
        }
    });
    quote! {
        const NAMESPACED: bool = #namespaced;
        const SINGULAR: &'static str = #singular;
        const SHORT_NAMES: &'static [&'static str] = &[#(#short_names),*];
        const CATEGORIES: &'static [&'static str] = &[#(#categories),*];
        const STATUS: bool = #status;
        const COLUMNS: &'static [#core::custom::PrinterColumn] = &[#(#columns),*];
        const RULES: &'static [#core::custom::Rule] = &[#object_rules];
        const SPEC_RULES: &'static [#core::custom::Rule] = &[#spec_rules];
        const OTHER_VERSIONS: &'static [&'static str] = &[#(#versions),*];
        #scale
    }
}
