module almoner.dev/gotools/wget

go 1.24.0
