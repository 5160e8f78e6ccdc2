from cqlray.cli.main import main

raise SystemExit(main())
